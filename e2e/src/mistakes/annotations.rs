//! Wrong values of the annotations that configure the proxy, at least one of each annotation.

use super::manifest::{apply, deployment};
use super::{Group, Mistake, Scene};
use crate::namespace::Mesh;

const CORES: &str = "use a number of cores, as in 100m or 2";
const BYTES: &str = "use a number of bytes from 1Mi, as in 64Mi";
const PORTS: &str = "use at most 100 ports and ranges with commas between them, as in 22,8000-8010";
const ADDRESSES: &str = "use at most 100 addresses and networks with commas between them, as in 10.0.0.0/8,fd00::/8";

/// Key, value, and the end of the message.
const VALUES: [(&str, &str, &str); 22] = [
    ("proxy-cpu-request", "lots", CORES),
    ("proxy-cpu-request", "-1", CORES),
    ("proxy-cpu-limit", "0", CORES),
    ("proxy-memory-request", "100m", BYTES),
    ("proxy-memory-request", "32", BYTES),
    ("proxy-memory-limit", "512 MB", BYTES),
    ("workers", "many", "use a number of threads from 1 to 64"),
    ("workers", "0", "use a number of threads from 1 to 64"),
    ("workers", "1000", "use a number of threads from 1 to 64"),
    ("proxy-log-level", "verbose", "use off, error, warn, info, debug or trace, or a list as in info,weft_proxy=debug"),
    ("access-log", "true", "use \"on\", \"failures\" or \"off\""),
    ("drain-seconds", "30s", "use a number of seconds from 1 to 86400"),
    ("drain-seconds", "0", "use a number of seconds from 1 to 86400"),
    ("native-sidecar", "yes", "use \"auto\", \"true\" or \"false\""),
    ("exclude-inbound-ports", "http", PORTS),
    ("exclude-inbound-ports", "8080 9090", PORTS),
    ("exclude-outbound-ports", "8010-8000", PORTS),
    ("exclude-outbound-ports", "70000", PORTS),
    ("exclude-outbound-ips", "shop.example", ADDRESSES),
    ("exclude-outbound-ips", "10.0.0.0/40", ADDRESSES),
    ("opaque-ports", "mysql", "use at most 100 ports with commas between them, as in 3306,5432; empty for none"),
    ("opaque-ports", "3306-3310", "use at most 100 ports with commas between them, as in 3306,5432; empty for none"),
];

pub(super) fn group() -> Group {
    let annotated = |annotations: &str| apply(deployment("", &format!(", {annotations}"), ""));
    let mut mistakes: Vec<Mistake> = VALUES
        .into_iter()
        .map(|(key, value, remedy)| {
            let wrong = format!("annotation config.weft.dev/{key} on the pod is {value:?}");
            Mistake::new(format!("`{key}: {value}`"), annotated(&format!("config.weft.dev/{key}: {value:?}")))
                .warned(&["Deployment web: its pods will be refused:", &wrong, remedy])
        })
        .collect();
    mistakes.extend([
        Mistake::new(
            "`proxy-cpu-request` above `proxy-cpu-limit`",
            annotated("config.weft.dev/proxy-cpu-request: \"4\", config.weft.dev/proxy-cpu-limit: \"2\""),
        )
        .warned(&[
            "Deployment web: its pods will be refused: annotation config.weft.dev/proxy-cpu-request on the pod is \"4\"",
            "make it at most config.weft.dev/proxy-cpu-limit, which is \"2\"",
        ]),
        Mistake::new(
            "`drain-seconds` above `terminationGracePeriodSeconds`",
            annotated("config.weft.dev/drain-seconds: \"60\""),
        )
        .warned(&[
            "Deployment web: annotation config.weft.dev/drain-seconds is 60, but the pod is killed 30 seconds after SIGTERM",
            "25 is used",
            "make terminationGracePeriodSeconds at least 65",
        ]),
        Mistake::new("a key with a typo", annotated("config.weft.dev/worker: \"2\"")).warned(&[
            "Deployment web: annotation config.weft.dev/worker on the pod is unknown and has no effect",
            "did you mean config.weft.dev/workers?",
        ]),
        Mistake::new("two wrong values at once", {
            annotated("config.weft.dev/workers: \"0\", config.weft.dev/access-log: \"true\"")
        })
        .warned(&[
            "annotation config.weft.dev/workers on the pod is \"0\"; use a number of threads from 1 to 64",
            "annotation config.weft.dev/access-log on the pod is \"true\"; use \"on\", \"failures\" or \"off\"",
        ]),
    ]);
    Group { name: "annotations", title: "Annotations of pods", mesh: Mesh::Inside, scene: Scene::default(), mistakes }
}
