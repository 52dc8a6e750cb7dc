//! Manifests of the demo application in its roles. They meet Pod Security `restricted`, so that a namespace may
//! enforce it.

use std::fmt::Write;

/// The demo application's image.
pub const IMAGE: &str = "localhost/weft-demo:dev";
/// Path of its program in the image.
pub const PROGRAM: &str = "/weft-demo";
/// Port of its HTTP servers.
pub const PORT: u16 = 9080;

/// A Deployment of the demo application.
#[derive(Clone, Debug)]
pub struct App {
    name: String,
    app: String,
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    arguments: Vec<String>,
    port: Option<u16>,
    replicas: u32,
    service_account: Option<String>,
    http_probe: bool,
}

/// A Service with one port, for the pods whose label `app` is its name.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    port: u16,
    target: u16,
    app_protocol: Option<String>,
}

/// A Service and a Deployment for each version of a server.
pub fn server(name: &str, versions: &[&str]) -> String {
    let mut yaml = Service::new(name).yaml();
    for version in versions {
        yaml += &App::server(name, version).yaml();
    }
    yaml
}

/// The pod that tests send requests from; [`crate::traffic::Client`] drives it.
pub fn client() -> String {
    App::client("client").yaml()
}

// === impl App ===

impl App {
    /// `weft-demo serve`: Deployment `<name>-<version>`, labels `app` and `version`.
    pub fn server(name: &str, version: &str) -> Self {
        let port = PORT.to_string();
        let arguments = ["serve", "--name", name, "--version", version, "--port", &port];
        let mut app = Self::new(&format!("{name}-{version}"), name, &arguments);
        app.labels.push(("version".to_owned(), version.to_owned()));
        app.port = Some(PORT);
        app.http_probe = true;
        app
    }

    /// `weft-demo tcp` on a port, with a greeting that it sends first.
    pub fn tcp(name: &str, port: u16, greeting: &str) -> Self {
        let mut app = Self::new(name, name, &["tcp", "--port", &port.to_string(), "--greeting", greeting]);
        app.port = Some(port);
        app
    }

    /// `weft-demo idle`.
    pub fn client(name: &str) -> Self {
        Self::new(name, name, &["idle"])
    }

    /// A pod with the labels of a server that listens on no port.
    pub fn not_listening(name: &str, version: &str) -> Self {
        let mut app = Self::new(&format!("{name}-{version}"), name, &["idle"]);
        app.labels.push(("version".to_owned(), version.to_owned()));
        app
    }

    fn new(name: &str, app: &str, arguments: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            app: app.to_owned(),
            labels: Vec::new(),
            annotations: Vec::new(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            port: None,
            replicas: 1,
            service_account: None,
            http_probe: false,
        }
    }

    /// With more arguments.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// With this number of pods.
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// With a label on its pods.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With an annotation on its pods.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a service account of its own, which is created too.
    pub fn service_account(mut self, name: &str) -> Self {
        self.service_account = Some(name.to_owned());
        self
    }

    /// The manifest.
    pub fn yaml(&self) -> String {
        let Self { name, app, replicas, .. } = self;
        let mut out = String::new();
        if let Some(account) = &self.service_account {
            let _ = write!(out, "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}}}\n");
        }
        let version = self.labels.iter().find(|(label, _)| label == "version");
        let selector = version.map(|(_, version)| format!(", version: {version}")).unwrap_or_default();
        let pairs = |pairs: &[(String, String)]| {
            pairs.iter().map(|(name, value)| format!(", {name}: {}", quoted(value))).collect::<String>()
        };
        let _ = write!(
            out,
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  \
             selector: {{matchLabels: {{app: {app}{selector}}}}}\n  template:\n    metadata:\n      \
             labels: {{app: {app}{labels}}}\n      annotations: {{test.example/e2e: \"true\"{annotations}}}\n    spec:\n",
            labels = pairs(&self.labels),
            annotations = pairs(&self.annotations),
        );
        if let Some(account) = &self.service_account {
            let _ = writeln!(out, "      serviceAccountName: {account}");
        }
        out += &container(app, &self.arguments, "      ");
        if let Some(port) = self.port {
            let _ = writeln!(out, "        ports: [{{name: main, containerPort: {port}}}]");
            let probe =
                if self.http_probe { "httpGet: {path: /healthz, port: main}" } else { "tcpSocket: {port: main}" };
            let _ = writeln!(out, "        readinessProbe: {{{probe}, periodSeconds: 1, failureThreshold: 2}}");
        }
        out
    }
}

// === impl Service ===

impl Service {
    /// On the servers' port.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), port: PORT, target: PORT, app_protocol: None }
    }

    /// On this port of the Service and of its pods.
    pub fn port(mut self, port: u16, target: u16) -> Self {
        (self.port, self.target) = (port, target);
        self
    }

    /// With an `appProtocol`.
    pub fn app_protocol(mut self, protocol: &str) -> Self {
        self.app_protocol = Some(protocol.to_owned());
        self
    }

    /// The manifest.
    pub fn yaml(&self) -> String {
        let Self { name, port, target, app_protocol } = self;
        let protocol = app_protocol.as_ref().map(|protocol| format!(", appProtocol: {protocol}")).unwrap_or_default();
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  \
             ports: [{{name: main, port: {port}, targetPort: {target}{protocol}}}]\n"
        )
    }
}

/// A Job that runs a client command of the demo application once.
pub fn job(name: &str, arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    format!(
        "---\napiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  backoffLimit: 0\n  template:\n    \
         metadata: {{labels: {{app: {name}}}}}\n    spec:\n      restartPolicy: Never\n{}",
        container(name, &arguments, "      ")
    )
}

fn container(name: &str, arguments: &[String], indent: &str) -> String {
    let arguments: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    let lines = [
        "securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}".to_owned(),
        "containers:".to_owned(),
        format!("- name: {name}"),
        format!("  image: {IMAGE}"),
        "  imagePullPolicy: IfNotPresent".to_owned(),
        format!("  args: [{}]", arguments.join(", ")),
        "  resources: {requests: {cpu: 10m, memory: 16Mi}}".to_owned(),
        "  securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}".to_owned(),
    ];
    lines.iter().fold(String::new(), |out, line| out + indent + line + "\n")
}

/// A quoted YAML string: JSON strings are YAML strings.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
