//! The sidecar's configuration file. `docs/reference/config.md` shows it whole.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use federation_model::{LEASE_MAX, LEASE_MIN, NamespaceName, ServiceName, WhenStale};
use gateway_admin::config::{Admin, Log, SettingsError, drain};
use serde::Deserialize;

/// Most services that one sidecar may serve.
pub const SERVES_MAX: usize = 64;

/// What `hanse sidecar --config FILE` reads. Unknown keys are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Enrol by Unix user id: the socket of an edge on this host.
    pub edge_socket: Option<PathBuf>,
    /// Enrol by token: a file that holds what `hanse workload token` printed.
    pub token_file: Option<PathBuf>,
    /// `host:port` of the edge's discovery listener; needed with `token_file`.
    pub edge: Option<String>,
    /// Folder of the last snapshot and the stable addresses; made with mode 0700.
    pub state_dir: PathBuf,
    /// How long a sidecar that is told to end waits until what is under way is answered, while it serves as ever. Default
    /// 30 s, at most 1 h. After that others are told, and 5 s later what is left is cut.
    #[serde(default = "drain::default", deserialize_with = "gateway_admin::config::duration::deserialize")]
    pub drain: Duration,
    #[serde(default)]
    pub outbound: Outbound,
    #[serde(default)]
    pub inbound: Inbound,
    /// Services that this sidecar's application serves.
    #[serde(default, rename = "serve")]
    pub serves: Vec<Serve>,
    #[serde(default)]
    pub dns: Dns,
    #[serde(default)]
    pub admin: Admin,
    #[serde(default)]
    pub log: Log,
}

/// `[outbound]`: how the application reaches the mesh.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    /// SOCKS5 listener. Left out: none.
    pub socks5: Option<SocketAddr>,
    /// Whether each visible service gets a loopback address in 127.64.0.0/10 on which the sidecar listens.
    #[serde(default)]
    pub loopback: bool,
}

/// `[inbound]`: where callers reach the application's services.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inbound {
    /// TCP address for mTLS. Default: loopback, a free port; needed only with `[[serve]]`.
    pub listen: Option<SocketAddr>,
    /// `host:port` that others are told. Default: the address that was bound.
    pub advertise: Option<String>,
}

/// `[[serve]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serve {
    /// `service[.namespace]`.
    pub service: String,
    /// The port that clients dial.
    pub port: u16,
    /// Where the application listens.
    pub app: SocketAddr,
    /// `keep` (default), `prefer-local` or `deny`: what callers in other clusters do past the lease. Counts where this
    /// sidecar is the first to register the service; afterwards `hanse service register` and `export` say it.
    pub when_stale: Option<String>,
    /// How long callers in other clusters may hear nothing of this one, 10 s to 24 h. Default 15 min.
    #[serde(default, deserialize_with = "lease")]
    pub lease: Option<Duration>,
}

fn lease<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    gateway_admin::config::duration::deserialize(from).map(Some)
}

/// `[dns]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// UDP and TCP address of the mesh DNS. Left out: none.
    pub listen: Option<SocketAddr>,
}

/// How the sidecar proves who it is, the first time.
#[derive(Debug, Clone)]
pub enum Enrolment {
    /// By the uid that the edge's Unix socket sees.
    Socket(PathBuf),
    /// By a one-time token, over TLS to this `host:port`.
    Token { file: PathBuf, edge: String },
}

/// A service that the application serves.
#[derive(Debug, Clone)]
pub struct Served {
    pub service: ServiceName,
    pub namespace: NamespaceName,
    pub port: u16,
    pub app: SocketAddr,
    pub when_stale: WhenStale,
    /// `None`: the default.
    pub lease: Option<Duration>,
}

/// A configuration whose every value was understood.
#[derive(Debug)]
pub struct Settings {
    pub enrolment: Enrolment,
    pub state_dir: PathBuf,
    pub drain: Duration,
    pub outbound: Outbound,
    pub inbound: Inbound,
    pub serves: Vec<Served>,
    pub dns_listen: Option<SocketAddr>,
    pub admin_listen: Option<SocketAddr>,
    pub admin_hosts: Vec<String>,
    pub log: Log,
}

impl Settings {
    /// Reads the file and understands every value.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or a key's value makes no sense.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let config: Config = gateway_admin::config::load(path)?;
        config.understand(path)
    }
}

impl Config {
    fn understand(self, path: &Path) -> Result<Settings, SettingsError> {
        let wrong = |key, message: String| SettingsError::Value { path: path.to_owned(), key, message };
        let enrolment = match (self.edge_socket, self.token_file, self.edge) {
            (Some(socket), None, None) => Enrolment::Socket(socket),
            (None, Some(file), Some(edge)) => {
                let _: federation_model::Endpoint = edge.parse().map_err(|e| wrong("edge", e))?;
                Enrolment::Token { file, edge }
            }
            _ => {
                let message = "give either edge_socket (enrol by uid) or both token_file and edge (enrol by token)";
                return Err(wrong("edge_socket", message.into()));
            }
        };
        if self.serves.len() > SERVES_MAX {
            return Err(wrong("serve", format!("{} services, at most {SERVES_MAX}", self.serves.len())));
        }
        let mut serves = Vec::new();
        for serve in self.serves {
            let (service, namespace) = match serve.service.split_once('.') {
                Some((service, namespace)) => {
                    (service, namespace.parse().map_err(|e| wrong("serve.service", format!("{e}")))?)
                }
                None => (serve.service.as_str(), NamespaceName::default()),
            };
            let service = service.parse().map_err(|e| wrong("serve.service", format!("{e}")))?;
            if serve.port == 0 {
                return Err(wrong("serve.port", format!("{service}: 0 is no port")));
            }
            let when_stale = match serve.when_stale {
                Some(text) => text.parse().map_err(|e| wrong("serve.when_stale", e))?,
                None => WhenStale::default(),
            };
            if let Some(lease) = serve.lease.filter(|lease| !(LEASE_MIN..=LEASE_MAX).contains(lease)) {
                let message = format!("{lease:?} is outside 10s to 24h");
                return Err(wrong("serve.lease", message));
            }
            let (port, app, lease) = (serve.port, serve.app, serve.lease);
            serves.push(Served { service, namespace, port, app, when_stale, lease });
        }
        drain::check(self.drain).map_err(|message| wrong("drain", message))?;
        self.log.check().map_err(|message| wrong("log.format", message))?;
        Ok(Settings {
            enrolment,
            state_dir: self.state_dir,
            drain: self.drain,
            outbound: self.outbound,
            inbound: self.inbound,
            serves,
            dns_listen: self.dns.listen,
            admin_listen: self.admin.listen,
            admin_hosts: self.admin.hosts,
            log: self.log,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("sidecar.toml");
        std::fs::write(&path, text).expect("write");
        Settings::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_socket_and_a_folder_are_enough() {
        let settings = check("edge_socket = \"/run/h.sock\"\nstate_dir = \"/s\"").expect("settings");
        assert!(matches!(settings.enrolment, Enrolment::Socket(_)));
        assert!(settings.serves.is_empty());
    }

    #[test]
    fn a_service_may_say_what_happens_to_stale_callers() {
        let base = "edge_socket = \"/run/h.sock\"\nstate_dir = \"/s\"\n[[serve]]\nservice = \"a\"\nport = 1\n";
        let base = format!("{base}app = \"127.0.0.1:1\"\n");
        let of = |text: &str| check(&format!("{base}{text}")).map(|s| (s.serves[0].when_stale, s.serves[0].lease));
        assert_eq!(of(""), Ok((WhenStale::Keep, None)));
        let lease = Some(Duration::from_secs(90));
        assert_eq!(of("when_stale = \"deny\"\nlease = \"90s\""), Ok((WhenStale::Deny, lease)));
    }

    #[test]
    fn names_the_key_that_is_wrong() {
        let base = "edge_socket = \"/run/h.sock\"\nstate_dir = \"/s\"\n";
        let serve = "[[serve]]\nservice = \"a\"\nport = 1\napp = \"127.0.0.1:1\"\n";
        for (text, wanted) in [
            ("state_dir = \"/s\"", "edge_socket: give either"),
            ("token_file = \"/t\"\nstate_dir = \"/s\"", "edge_socket: give either"),
            ("token_file = \"/t\"\nedge = \"nowhere\"\nstate_dir = \"/s\"", "edge: endpoint \"nowhere\""),
            (&format!("{base}drain = \"2h\""), "drain: 2h is longer than 1h"),
            (&format!("{base}[outbound]\nsocks = \"127.0.0.1:1\""), "did you mean `socks5`?"),
            (&format!("{base}[[serve]]\nservice = \"A\"\nport = 1\napp = \"127.0.0.1:1\""), "serve.service"),
            (&format!("{base}[[serve]]\nservice = \"a.b.c\"\nport = 1\napp = \"127.0.0.1:1\""), "serve.service"),
            (&format!("{base}[[serve]]\nservice = \"a\"\nport = 0\napp = \"127.0.0.1:1\""), "serve.port"),
            (&format!("{base}[[serve]]\nservice = \"a\"\nport = 1\napp = \"here\""), "app"),
            (&format!("{base}{serve}when_stale = \"never\""), "serve.when_stale: \"never\" is no policy"),
            (&format!("{base}{serve}lease = \"9s\""), "serve.lease: 9s is outside 10s to 24h"),
            (&format!("{base}{serve}lease = \"25h\""), "serve.lease: 90000s is outside"),
            (&format!("{base}{serve}lease = \"soon\""), "\"soon\""),
        ] {
            let message = check(text).map(|_| ()).expect_err(text);
            assert!(message.contains(wanted), "{text}\n-> {message}\nwanted {wanted}");
        }
    }
}
