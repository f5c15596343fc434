//! The gateway's configuration file. `docs/reference/config.md` shows it whole.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use federation_model::{
    Accept, AccountName, AccountRef, Approval, ClusterName, Endpoint, NamespaceName, Relay, TrustDomain,
};
use gateway_admin::config::{Admin, Log, SettingsError, drain};
use serde::Deserialize;

/// Shortest life of an SVID that can be configured: below it renewal has no time to be retried.
pub const SVID_TTL_MIN: Duration = Duration::from_secs(4);
/// Where the manage API is unless the configuration says otherwise: outside of `data_dir`, which is closed to the
/// workloads that enrol here.
pub const SOCKET_DEFAULT: &str = "/run/hanse/hanse.sock";
/// Longest life of an SVID that can be configured.
pub const SVID_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest time between two copies of the store that can be configured.
pub const BACKUP_EVERY_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// Most copies of the store that can be kept.
pub const BACKUPS_MAX: usize = 10_000;

/// What `hanse gateway --config FILE` reads. Unknown keys are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this cluster: an RFC 1123 label, never `default`, and never changed once the cluster joined others.
    pub cluster: String,
    /// Trust domain. Default `<cluster>.mesh.internal`; never changed afterwards.
    pub trust_domain: Option<String>,
    /// Folder of the store; made with mode 0700.
    pub data_dir: PathBuf,
    /// File of the key that seals private keys in the store. Default `<config file's folder>/<cluster>.kek`; made with
    /// mode 0400 if the store is new and it is not there.
    pub kek_file: Option<PathBuf>,
    /// `sled` (default) or `memory` (forgets everything at exit: for trials).
    #[serde(default)]
    pub store: StoreKind,
    /// How long an edge that is told to end waits until what is under way is answered, while it serves as ever. Default
    /// 30 s, at most 1 h. After that others are told, and 5 s later what is left is cut.
    #[serde(default = "drain::default", deserialize_with = "gateway_admin::config::duration::deserialize")]
    pub drain: Duration,
    /// Unix socket of the manage API and of enrolment by uid. Default [`SOCKET_DEFAULT`], where the command line looks.
    pub socket: Option<PathBuf>,
    #[serde(default)]
    pub federation: Federation,
    #[serde(default)]
    pub mesh: Listener,
    #[serde(default)]
    pub discovery: Listener,
    #[serde(default)]
    pub admin: Admin,
    #[serde(default)]
    pub svid: SvidConfig,
    #[serde(default)]
    pub backup: Option<BackupConfig>,
    #[serde(default)]
    pub log: Log,
    /// Workloads that enrol by their Unix user id.
    #[serde(default, rename = "workload")]
    pub workloads: Vec<WorkloadConfig>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    #[default]
    Sled,
    Memory,
}

/// `[federation]`: sessions with other members.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Federation {
    /// UDP address on which this edge accepts sessions. Left out: it accepts nothing inbound and dials the others.
    pub listen: Option<SocketAddr>,
    /// `host:port` at which others reach it, at most 8. Default: the listen address, if it is not a wildcard.
    #[serde(default)]
    pub advertise: Vec<String>,
    /// `federation` (default): lawmakers' rules count here. `own`: rules of others can only restrict.
    #[serde(default)]
    pub accept: AcceptConfig,
    /// `auto` (default): whom any member admits is let in here. `manual`: only once an operator here approves it, unless
    /// this cluster admitted it itself, or was admitted by it.
    #[serde(default)]
    pub approval: ApprovalConfig,
    /// `nobody` (default), or `members`: this edge carries tunnels between two others that cannot reach each other.
    #[serde(default)]
    pub relay: RelayConfig,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelayConfig {
    #[default]
    Nobody,
    Members,
}

impl From<RelayConfig> for Relay {
    fn from(relay: RelayConfig) -> Self {
        match relay {
            RelayConfig::Nobody => Self::Nobody,
            RelayConfig::Members => Self::Members,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalConfig {
    #[default]
    Auto,
    Manual,
}

impl From<ApprovalConfig> for Approval {
    fn from(approval: ApprovalConfig) -> Self {
        match approval {
            ApprovalConfig::Auto => Self::Auto,
            ApprovalConfig::Manual => Self::Manual,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AcceptConfig {
    #[default]
    Federation,
    Own,
}

impl From<AcceptConfig> for Accept {
    fn from(accept: AcceptConfig) -> Self {
        match accept {
            AcceptConfig::Federation => Self::Federation,
            AcceptConfig::Own => Self::Own,
        }
    }
}

/// `[mesh]` and `[discovery]`: where this cluster's sidecars come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// TCP address. Default: loopback, a free port.
    pub listen: Option<SocketAddr>,
    /// `host:port` that sidecars are told. Default: the address that was bound.
    pub advertise: Option<String>,
}

/// `[svid]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SvidConfig {
    /// Life of the SVIDs that this cluster issues, 4 s to 24 h. Default 1 h; renewed at half life.
    #[serde(deserialize_with = "gateway_admin::config::duration::deserialize")]
    pub ttl: Duration,
}

impl Default for SvidConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(60 * 60) }
    }
}

/// `[backup]`: copies of the store by the clock.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupConfig {
    /// Folder of the copies; made with mode 0700. Better on another disk than `data_dir`; never where the key file is.
    pub directory: PathBuf,
    /// Time between two copies, 1 s to 31 d. Default 1 h.
    #[serde(default = "hour", deserialize_with = "gateway_admin::config::duration::deserialize")]
    pub every: Duration,
    /// How many are kept, the newest, 1 to 10,000. Default 48.
    #[serde(default = "keep")]
    pub keep: usize,
}

fn hour() -> Duration {
    Duration::from_secs(60 * 60)
}

fn keep() -> usize {
    48
}

/// `[[workload]]`: whoever runs under `uid` on this host is this account.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadConfig {
    pub uid: u32,
    pub account: String,
    /// Default `default`.
    pub namespace: Option<String>,
}

/// A configuration whose every value was understood.
#[derive(Debug)]
pub struct Settings {
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    pub data_dir: PathBuf,
    pub kek_file: PathBuf,
    pub store: StoreKind,
    pub drain: Duration,
    pub socket: PathBuf,
    pub federation_listen: Option<SocketAddr>,
    pub advertise: Vec<Endpoint>,
    pub accept: Accept,
    pub approval: Approval,
    pub relay: Relay,
    pub mesh: Listener,
    pub discovery: Listener,
    pub admin_listen: Option<SocketAddr>,
    pub admin_hosts: Vec<String>,
    pub svid_ttl: Duration,
    pub backup: Option<BackupConfig>,
    pub log: Log,
    pub workloads: Vec<(u32, AccountRef)>,
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

    /// Keys that differ from `running` and cannot change while the gateway runs.
    pub(crate) fn fixed_changes(&self, running: &Self) -> Vec<&'static str> {
        let keys = [
            ("cluster", self.cluster != running.cluster),
            ("trust_domain", self.trust_domain != running.trust_domain),
            ("drain", self.drain != running.drain),
            ("data_dir", self.data_dir != running.data_dir),
            ("kek_file", self.kek_file != running.kek_file),
            ("store", self.store != running.store),
            ("socket", self.socket != running.socket),
            ("federation.listen", self.federation_listen != running.federation_listen),
            ("federation.advertise", self.advertise != running.advertise),
            ("federation.accept", self.accept != running.accept),
            ("federation.approval", self.approval != running.approval),
            ("federation.relay", self.relay != running.relay),
            ("mesh", self.mesh != running.mesh),
            ("discovery", self.discovery != running.discovery),
            ("admin", self.admin_listen != running.admin_listen || self.admin_hosts != running.admin_hosts),
            ("backup", self.backup != running.backup),
            ("svid.ttl", self.svid_ttl != running.svid_ttl),
            ("log.format", self.log.format != running.log.format),
        ];
        keys.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }

    /// Keys that differ from `before` and can.
    pub(crate) fn live_changes(&self, before: &Self) -> Vec<String> {
        let keys =
            [("log.level", self.log.level != before.log.level), ("workload", self.workloads != before.workloads)];
        keys.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key.to_owned()).collect()
    }
}

impl Config {
    fn understand(self, path: &Path) -> Result<Settings, SettingsError> {
        let wrong = |key, message: String| SettingsError::Value { path: path.to_owned(), key, message };
        let cluster: ClusterName = self.cluster.parse().map_err(|e| wrong("cluster", format!("{e}")))?;
        let domain = self.trust_domain.unwrap_or_else(|| format!("{cluster}.mesh.internal"));
        let trust_domain = domain.parse().map_err(|e| wrong("trust_domain", format!("{domain:?}: {e}")))?;
        let ttl = self.svid.ttl;
        if !(SVID_TTL_MIN..=SVID_TTL_MAX).contains(&ttl) {
            return Err(wrong("svid.ttl", format!("{} is outside 4s to 24h", humantime::format_duration(ttl))));
        }
        drain::check(self.drain).map_err(|message| wrong("drain", message))?;
        self.log.check().map_err(|message| wrong("log.format", message))?;
        let listen = self.federation.listen;
        let mut advertise = Vec::new();
        for text in &self.federation.advertise {
            advertise.push(text.parse::<Endpoint>().map_err(|e| wrong("federation.advertise", e))?);
        }
        if advertise.len() > federation_model::ENDPOINTS_MAX {
            return Err(wrong("federation.advertise", format!("{} endpoints, at most 8", advertise.len())));
        }
        match listen {
            None if !advertise.is_empty() => {
                return Err(wrong("federation.advertise", "there is no federation.listen to lead to".into()));
            }
            Some(address) if advertise.is_empty() && address.ip().is_unspecified() => {
                let message = format!("others cannot dial {address}: name the host:port at which they reach this edge");
                return Err(wrong("federation.advertise", message));
            }
            _ => {}
        }
        let mut workloads: Vec<(u32, AccountRef)> = Vec::new();
        for workload in &self.workloads {
            let account: AccountName =
                workload.account.parse().map_err(|e| wrong("workload.account", format!("{e}")))?;
            let namespace = match &workload.namespace {
                Some(text) => text.parse().map_err(|e| wrong("workload.namespace", format!("{e}")))?,
                None => NamespaceName::default(),
            };
            if workloads.iter().any(|(uid, _)| *uid == workload.uid) {
                return Err(wrong("workload.uid", format!("{} is named twice", workload.uid)));
            }
            workloads.push((workload.uid, AccountRef { account, namespace }));
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let kek_file = self.kek_file.unwrap_or_else(|| folder.join(format!("{cluster}.kek")));
        if kek_file.starts_with(&self.data_dir) {
            let message = format!("{} lies in data_dir: a copy of the data would hold its key", kek_file.display());
            return Err(wrong("kek_file", message));
        }
        if let Some(backup) = &self.backup {
            if !(Duration::from_secs(1)..=BACKUP_EVERY_MAX).contains(&backup.every) {
                let message = format!("{} is outside 1s to 31d", humantime::format_duration(backup.every));
                return Err(wrong("backup.every", message));
            }
            if !(1..=BACKUPS_MAX).contains(&backup.keep) {
                return Err(wrong("backup.keep", format!("{} is outside 1 to {BACKUPS_MAX}", backup.keep)));
            }
            if kek_file.starts_with(&backup.directory) {
                let message =
                    format!("the key file {} lies in it: the copies would hold their key", kek_file.display());
                return Err(wrong("backup.directory", message));
            }
            if backup.directory.starts_with(&self.data_dir) {
                let message = format!("{} lies in data_dir: it would be lost with it", backup.directory.display());
                return Err(wrong("backup.directory", message));
            }
        }
        Ok(Settings {
            backup: self.backup,
            socket: self.socket.unwrap_or_else(|| SOCKET_DEFAULT.into()),
            trust_domain,
            kek_file,
            store: self.store,
            drain: self.drain,
            federation_listen: listen,
            advertise,
            accept: self.federation.accept.into(),
            approval: self.federation.approval.into(),
            relay: self.federation.relay.into(),
            mesh: self.mesh,
            discovery: self.discovery,
            admin_listen: self.admin.listen,
            admin_hosts: self.admin.hosts,
            svid_ttl: ttl,
            log: self.log,
            workloads,
            data_dir: self.data_dir,
            cluster,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, text).expect("write");
        Settings::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_and_a_folder_are_enough() {
        let settings = check("cluster = \"west\"\ndata_dir = \"/var/lib/hanse\"").expect("settings");
        assert_eq!(settings.trust_domain.as_str(), "west.mesh.internal");
        assert_eq!(settings.socket, Path::new(SOCKET_DEFAULT));
        assert_eq!(settings.svid_ttl, Duration::from_secs(3600));
        assert_eq!(settings.federation_listen, None);
        assert_eq!((settings.approval, settings.relay), (Approval::Auto, Relay::Nobody));
    }

    #[test]
    fn approval_and_relaying_are_said_in_words() {
        let base = "cluster = \"west\"\ndata_dir = \"/d\"\nkek_file = \"/k\"\n[federation]\n";
        let settings = check(&format!("{base}approval = \"manual\"\nrelay = \"members\"")).expect("settings");
        assert_eq!((settings.approval, settings.relay), (Approval::Manual, Relay::Members));
        let before = check(base).expect("settings");
        assert_eq!(settings.fixed_changes(&before), ["federation.approval", "federation.relay"]);
        for wrong in ["approval = \"by hand\"", "relay = \"all\"", "relay = true"] {
            assert!(check(&format!("{base}{wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn copies_by_the_clock_are_asked_for_with_a_folder_alone() {
        let base = "cluster = \"west\"\ndata_dir = \"/d\"\nkek_file = \"/k\"\n";
        assert_eq!(check(base).expect("settings").backup, None);
        let settings = check(&format!("{base}[backup]\ndirectory = \"/b\"")).expect("settings");
        let wanted = BackupConfig { directory: "/b".into(), every: Duration::from_secs(3600), keep: 48 };
        assert_eq!(settings.backup, Some(wanted));
    }

    #[test]
    fn names_the_key_that_is_wrong() {
        let base = "cluster = \"west\"\ndata_dir = \"/d\"\n";
        for (text, wanted) in [
            ("cluster = \"default\"\ndata_dir = \"/d\"", "cluster: cluster name \"default\""),
            ("cluster = \"We st\"\ndata_dir = \"/d\"", "cluster: cluster name"),
            ("data_dir = \"/d\"", "missing field `cluster`"),
            (&format!("{base}trust_domain = \"West\""), "trust_domain: \"West\""),
            (&format!("{base}drain = \"2h\""), "drain: 2h is longer than 1h"),
            (&format!("{base}[svid]\nttl = \"1s\""), "svid.ttl: 1s is outside 4s to 24h"),
            (&format!("{base}[svid]\nttl = \"soon\""), "\"soon\""),
            (&format!("{base}[svid]\nttI = \"1h\""), "did you mean `ttl`?"),
            (&format!("{base}[log]\nformat = \"xml\""), "log.format: \"xml\""),
            (&format!("{base}[federation]\nlisten = \"[::]:7443\""), "federation.advertise: others cannot dial"),
            (&format!("{base}[federation]\nadvertise = [\"a:1\"]"), "no federation.listen"),
            (&format!("{base}[federation]\nlisten = \"127.0.0.1:1\"\nadvertise = [\"a\"]"), "not host:port"),
            (&format!("{base}[[workload]]\nuid = 1\naccount = \"A\""), "workload.account"),
            (&format!("{base}[[workload]]\nuid = 1\naccount = \"a\"\n[[workload]]\nuid = 1\naccount = \"b\""), "twice"),
            (&format!("{base}kek_file = \"/d/kek\""), "kek_file: /d/kek lies in data_dir"),
            (&format!("{base}store = \"redis\""), "redis"),
            (&format!("{base}[backup]\nevery = \"1h\""), "missing field `directory`"),
            (&format!("{base}[backup]\ndirectory = \"/b\"\nevery = \"40d\""), "backup.every: 1month 9days"),
            (&format!("{base}[backup]\ndirectory = \"/b\"\nkeep = 0"), "backup.keep: 0 is outside"),
            (&format!("{base}[backup]\ndirectory = \"/d/backups\""), "backup.directory: /d/backups lies in data_dir"),
            (&format!("{base}kek_file = \"/b/kek\"\n[backup]\ndirectory = \"/b\""), "backup.directory: the key file"),
        ] {
            let message = check(text).map(|_| ()).expect_err(text);
            assert!(message.contains(wanted), "{text}\n-> {message}\nwanted {wanted}");
        }
    }
}
