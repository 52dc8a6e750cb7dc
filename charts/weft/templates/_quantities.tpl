{{- /* The number of cores or bytes of a quantity, as a float. The schema of values has checked its form. */ -}}
{{- define "weft.amount" -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "Ki" 1024.0 "M" 1e6 "Mi" 1048576.0 "G" 1e9 "Gi" 1073741824.0 "T" 1e12 "Ti" 1099511627776.0 -}}
{{- mulf (float64 $number) (get $units (trimPrefix $number (toString .))) -}}
{{- end -}}

{{- /* Fails if the proxy requests more than its limit, with which the injector would not start. */ -}}
{{- define "weft.checkProxyResources" -}}
{{- range $resource := list "cpu" "memory" -}}
{{- $request := get $.requests $resource -}}
{{- $limit := get $.limits $resource -}}
{{- if and $request $limit -}}
{{- if gt (include "weft.amount" $request | float64) (include "weft.amount" $limit | float64) -}}
{{- fail (printf "proxy.resources.requests.%s (%v) is above proxy.resources.limits.%s (%v): lower the request or raise the limit" $resource $request $resource $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
