-- Health of Weft's objects (Mesh, MeshRoute, MeshCluster, MeshPolicy), from the condition Ready that each of them has.
local hs = { status = "Progressing", message = "Waiting for Weft's operator" }

if obj.status == nil or obj.status.conditions == nil then
  return hs
end

for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Ready" then
    -- The operator has not seen the latest spec yet.
    if condition.observedGeneration ~= nil and condition.observedGeneration ~= obj.metadata.generation then
      return hs
    end
    hs.message = condition.message
    if condition.status == "True" then
      hs.status = "Healthy"
    -- The operator is about to write the proxies' configuration.
    elseif condition.reason == "Pending" then
      hs.status = "Progressing"
    else
      hs.status = "Degraded"
    end
    return hs
  end
end

return hs
