//! Rules that cannot be applied: each is answered 500, the others work, and the conditions name it.

use anyhow::{Result, ensure};
use weft_e2e::gateway_api::{in_force, parents, servers};
use weft_e2e::namespace::{SOON, in_mesh};
use weft_e2e::wait::eventually;

#[test]
fn rules_that_cannot_be_applied_answer_500_and_leave_the_others() -> Result<()> {
    in_mesh("gateway-invalid", |ns| {
        let client = servers(ns)?;
        let one = "backendRefs: [{name: one, port: 9080}]";
        let extension = "filters: [{type: ExtensionRef, extensionRef: {group: shop.example, kind: Magic, name: wand}}]";
        let of_backend = format!("backendRefs: [{{name: one, port: 9080, {extension}}}]");
        let with_extension = format!("{extension}\n  {one}");
        // The rule, its fields, and a part of the message that says what is wrong with it.
        let bad = [
            ("none", "backendRefs: []", "no backend with a weight above 0"),
            ("zero", "backendRefs: [{name: one, port: 9080, weight: 0}]", "no backend with a weight above 0"),
            ("missing", "backendRefs: [{name: nowhere, port: 9080}]", "/nowhere does not exist"),
            ("port", "backendRefs: [{name: one, port: 1234}]", "has no TCP port 1234"),
            ("kind", "backendRefs: [{kind: Volume, name: one, port: 9080}]", "Volume"),
            ("group", "backendRefs: [{group: shop.example, kind: Service, name: one, port: 9080}]", "shop.example"),
            ("extension", &with_extension, "ExtensionRef"),
            ("of-backend", &of_backend, "ExtensionRef"),
        ];
        let rule = |name: &str, fields: &str| {
            format!("- name: {name}\n  matches: [{{path: {{value: /{name}}}}}]\n  {fields}\n")
        };
        let rules = bad.map(|(name, fields, _)| rule(name, fields)).concat()
            + &rule("half", "backendRefs: [{name: one, port: 9080}, {name: nowhere, port: 9080}]")
            + &rule("good", one);
        in_force(ns, &client, "echo", &rules)?;
        let said: String = eventually("the conditions to name each rule", SOON, || {
            let parents = parents(ns, "httproute/echo")?;
            let conditions = parents.iter().flat_map(|parent| &parent.conditions);
            let said: String = conditions.map(|condition| format!("{}\n", condition.message)).collect();
            for (name, _, wrong) in bad {
                let rule = said.split_once(&format!("rule {name}:")).map(|(_, rest)| rest);
                ensure!(rule.is_some_and(|rest| rest.contains(wrong)), "{wrong:?} of rule {name} is not in {said}");
            }
            Ok(said)
        })?;
        ensure!(!said.contains("rule good"), "nothing is wrong with that rule: {said}");
        for (name, ..) in bad {
            let answer = client.get(&format!("http://echo:9080/{name}/a")).send()?.expect_status(500)?;
            let source = format!("HTTPRoute/{}/echo/{name}", ns.name);
            ensure!(answer.source() == Some(&source), "the answer names {source}: {answer:?}");
        }
        client.load("http://echo:9080/good").requests(100).run()?.expect_none_failed(100)?;
        let report = client.load("http://echo:9080/half").requests(600).run()?;
        let (good, failed) = (report.status(200), report.status(500));
        ensure!(good + failed == 600 && (240..=360).contains(&failed), "half is answered 500: {}", report.summary());
        ensure!(report.by_reason.get("backend-not-found") == Some(&failed), "{}", report.summary());
        Ok(())
    })
}
