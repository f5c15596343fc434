//! Every verb against a real gRPC server on a Unix socket.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use clap::Parser;
use federation_identity::{LocalSigner, backup::Writer, now};
use gateway_cli::{Client, CreateBackup, Globals, Operator, Terminal, command, create_backup_on, run_on};
use proto::manage::{
    self as wire,
    manage_server::{Manage, ManageServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

const NOW_MS: u64 = 1_700_000_000_000;
const SECRET: &str = "hanse1.c2VjcmV0";

/// A gateway that answers the same to everybody, and remembers what it was asked.
#[derive(Clone, Default)]
struct Gateway {
    asked: Arc<Mutex<Vec<String>>>,
    /// What every request fails with.
    broken: Option<(Code, &'static str)>,
    /// Whether checks and decisions say no.
    no: bool,
    /// The pieces of a backup.
    backup: Vec<Result<wire::BackupPiece, Status>>,
}

impl Gateway {
    fn note<T>(&self, what: &impl std::fmt::Debug, reply: T) -> Result<Response<T>, Status> {
        self.asked.lock().expect("lock").push(format!("{what:?}"));
        match self.broken {
            Some((code, message)) => Err(Status::new(code, message)),
            None => Ok(Response::new(reply)),
        }
    }

    fn intention(&self) -> wire::Intention {
        wire::Intention {
            source: "web.shop.east".into(),
            destination: "payments.billing.*".into(),
            action: "allow".into(),
            layer: "rule".into(),
            precedence: 9,
            writer: "east".into(),
            author: "root".into(),
            written_at_ms: NOW_MS,
            id: "abc/law/1.3".into(),
            counts: !self.no,
            note: if self.no { "east is no lawmaker".into() } else { String::new() },
            conflict: false,
            enforced: if self.no { 4 } else { 5 },
            members: 5,
            behind: match self.no {
                true => vec![wire::Laggard { cluster: "onprem".into(), data_age_ms: 40_000 }],
                false => Vec::new(),
            },
        }
    }

    fn service(&self) -> wire::Service {
        wire::Service {
            name: "payments.billing.east".into(),
            dns: "payments.billing.east.mesh.internal".into(),
            port: 8080,
            accounts: vec!["payments.billing".into()],
            exported_to: Vec::new(),
            own: true,
            instances: 1,
            when_stale: "keep".into(),
            lease_ms: 900_000,
            freshness: "own".into(),
            ..wire::Service::default()
        }
    }
}

fn member(cluster: &str, state: &str) -> wire::MembershipReply {
    wire::MembershipReply {
        cluster: cluster.into(),
        state: state.into(),
        changed: true,
        detail: format!("{cluster} is {state}\u{1b}[0m"),
        ..Default::default()
    }
}

macro_rules! answers {
    ($($method:ident($request:ident) -> $reply:ident: $value:expr;)*) => {
        #[tonic::async_trait]
        impl Manage for Gateway {
            type CreateBackupStream = tokio_stream::Iter<std::vec::IntoIter<Result<wire::BackupPiece, Status>>>;

            async fn create_backup(
                &self,
                _: Request<wire::CreateBackupRequest>,
            ) -> Result<Response<Self::CreateBackupStream>, Status> {
                self.note(&"CreateBackup", tokio_stream::iter(self.backup.clone()))
            }

            $(
                async fn $method(&self, request: Request<wire::$request>) -> Result<Response<wire::$reply>, Status> {
                    let request = request.into_inner();
                    let value: fn(&Gateway, &wire::$request) -> wire::$reply = $value;
                    let reply = value(self, &request);
                    self.note(&request, reply)
                }
            )*
        }
    };
}

answers! {
    status(StatusRequest) -> StatusReply: |_, _| wire::StatusReply { cluster: "east".into(), ..Default::default() };
    issue_token(IssueTokenRequest) -> IssueTokenReply: |_, asked| wire::IssueTokenReply {
        token: SECRET.into(),
        cluster: asked.cluster.clone(),
        expires_at_ms: NOW_MS + 900_000,
        ..Default::default()
    };
    list_tokens(ListTokensRequest) -> TokenList: |_, _| wire::TokenList::default();
    join(JoinRequest) -> JoinReply: |_, _| wire::JoinReply {
        cluster: "west".into(),
        federation: "ab".repeat(32),
        issuer: "east".into(),
        members: vec!["east".into(), "west".into()],
    };
    list_links(ListLinksRequest) -> LinkList: |gateway, _| wire::LinkList {
        links: if gateway.no { Vec::new() } else {
            vec![wire::Link { cluster: "west".into(), state: "up".into(), ..Default::default() }]
        },
    };
    remove_link(ClusterRequest) -> MembershipReply: |_, asked| member(&asked.cluster, "blocked");
    block_cluster(ClusterRequest) -> MembershipReply: |_, asked| member(&asked.cluster, "blocked");
    approve_cluster(ClusterRequest) -> MembershipReply: |_, asked| member(&asked.cluster, "active");
    evict_cluster(ClusterRequest) -> MembershipReply: |_, asked| wire::MembershipReply {
        needs: vec!["west".into(), "north".into()],
        evicted_by: vec!["east".into()],
        ..member(&asked.cluster, "suspended")
    };
    set_lawmaker(SetLawmakerRequest) -> MembershipReply: |_, asked| member(&asked.cluster, "active");
    leave_federation(LeaveFederationRequest) -> LeaveFederationReply: |_, _| wire::LeaveFederationReply {
        left: "ab".repeat(32),
        federation: "cd".repeat(32),
        untold: vec!["north".into()],
    };
    list_clusters(ListClustersRequest) -> ClusterList: |_, _| wire::ClusterList {
        clusters: vec![wire::Cluster { name: "\u{1b}[31meast".into(), ..Default::default() }],
    };
    issue_workload_token(IssueWorkloadTokenRequest) -> IssueWorkloadTokenReply: |_, asked| wire::IssueWorkloadTokenReply {
        token: "hansew1.c2VjcmV0".into(),
        account: asked.account.clone(),
        expires_at_ms: NOW_MS + 60_000,
        ..Default::default()
    };
    list_workloads(ListWorkloadsRequest) -> WorkloadList: |_, _| wire::WorkloadList::default();
    list_services(ListServicesRequest) -> ServiceList: |gateway, _| wire::ServiceList { services: vec![gateway.service()] };
    register_service(RegisterServiceRequest) -> ServiceReply: |gateway, _| wire::ServiceReply { service: Some(gateway.service()) };
    export_service(ExportServiceRequest) -> ServiceReply: |gateway, _| wire::ServiceReply { service: Some(gateway.service()) };
    write_intention(WriteIntentionRequest) -> IntentionReply: |gateway, _| wire::IntentionReply { intention: Some(gateway.intention()) };
    delete_intention(DeleteIntentionRequest) -> IntentionReply: |gateway, _| wire::IntentionReply {
        intention: Some(wire::Intention { action: "deleted".into(), counts: false, note: String::new(), ..gateway.intention() }),
    };
    list_intentions(ListIntentionsRequest) -> IntentionList: |gateway, _| wire::IntentionList { intentions: vec![gateway.intention()] };
    check_intention(CheckIntentionRequest) -> CheckIntentionReply: |gateway, _| wire::CheckIntentionReply {
        allowed: !gateway.no,
        detail: "because".into(),
        reason: if gateway.no { "default_deny".into() } else { String::new() },
        ..Default::default()
    };
    lookup_dns(LookupDnsRequest) -> LookupDnsReply: |gateway, asked| wire::LookupDnsReply {
        name: asked.name.clone(),
        r#type: asked.r#type.clone(),
        rcode: if gateway.no { "NXDOMAIN".into() } else { "NOERROR".into() },
        answers: vec!["127.64.0.1".into()],
        why: "it is visible here".into(),
        data_age_ms: 0,
    };
    cert_status(CertStatusRequest) -> CertStatusReply: |gateway, _| wire::CertStatusReply {
        rotation: Some(match gateway.no {
            true => rotation("published", 0),
            false => rotation("retired", NOW_MS),
        }),
        ..wire::CertStatusReply::default()
    };
    list_certificates(ListCertificatesRequest) -> IssuedList: |_, _| wire::IssuedList {
        issued: vec![issued(false)],
        revoked: vec![wire::RevokedKey {
            cluster: "west".into(),
            serial: "0aff".into(),
            key: "55".repeat(32),
            not_after_ms: NOW_MS + 90_000,
        }],
    };
    rotate_intermediate(RotateIntermediateRequest) -> RotateIntermediateReply: |_, _| wire::RotateIntermediateReply {
        signs: "0bb0".into(),
        before: "0aff".into(),
        last_ends_ms: NOW_MS + 3_600_000,
    };
    revoke_certificate(RevokeCertificateRequest) -> RevokeReply: |_, _| wire::RevokeReply {
        certificate: Some(issued(true)),
        record: "abc/law/1.9".into(),
    };
    rotate_root(RotateRootRequest) -> RotationReply: |_, _| wire::RotationReply {
        rotation: Some(rotation("published", 0)),
    };
    abort_rotation(AbortRotationRequest) -> RotationReply: |_, _| wire::RotationReply {
        rotation: Some(rotation("aborted", NOW_MS)),
    };
    check(CheckRequest) -> CheckReply: |gateway, _| wire::CheckReply {
        results: vec![wire::CheckResult {
            id: "link.handshake".into(),
            state: if gateway.no { "failed".into() } else { "ok".into() },
            subject: "west".into(),
            detail: "tried".into(),
            fix: "look".into(),
            ms: 1,
        }],
    };
    reload(ReloadRequest) -> ReloadReply: |_, _| wire::ReloadReply { changed: vec!["log.level".into()] };
    set_log_level(SetLogLevelRequest) -> SetLogLevelReply: |_, asked| wire::SetLogLevelReply { level: asked.level.clone() };
}

fn issued(revoked: bool) -> wire::IssuedCertificate {
    wire::IssuedCertificate {
        spiffe_id: "spiffe://east.mesh.internal/ns/shop/sa/web".into(),
        serial: "0aff10".into(),
        key: "44".repeat(32),
        not_before_ms: NOW_MS,
        not_after_ms: NOW_MS + 3_600_000,
        revoked,
    }
}

/// East knows the new root, onprem does not.
fn rotation(phase: &str, ended_at_ms: u64) -> wire::Rotation {
    wire::Rotation {
        phase: phase.into(),
        started_at_ms: NOW_MS,
        author: "ada".into(),
        acknowledged: 2,
        members: 3,
        behind: vec![wire::Laggard { cluster: "onprem".into(), data_age_ms: 40_000 }],
        without: vec!["onprem".into()],
        old_until_ms: 0,
        ended_at_ms,
    }
}

/// A running server; ends with it.
struct Running {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(gateway: Gateway) -> Running {
    let folder = tempfile::tempdir().expect("folder");
    let socket = folder.path().join("hanse.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    let task = tokio::spawn(async move {
        let incoming = UnixListenerStream::new(listener);
        let _ = Server::builder().add_service(ManageServer::new(gateway)).serve_with_incoming(incoming).await;
    });
    Running { _folder: folder, socket, task }
}

#[derive(Parser)]
#[command(name = "hanse")]
struct Line {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    operator: Operator,
}

/// Exit code, stdout, stderr.
async fn run(socket: &Path, line: &str, input: &str) -> (u8, String, String) {
    run_by(false, socket, line, input).await
}

/// [`run`] on a terminal or not.
async fn run_by(asks: bool, socket: &Path, line: &str, input: &str) -> (u8, String, String) {
    let mut words: Vec<&str> = vec!["hanse", "--socket", socket.to_str().expect("path")];
    words.extend(line.split_whitespace());
    let Line { globals, operator } = Line::try_parse_from(words).expect(line);
    let (mut out, mut err, mut input) = (Vec::new(), Vec::new(), Cursor::new(input.to_owned()));
    let mut terminal = Terminal {
        out: &mut out,
        err: &mut err,
        input: &mut input,
        asks,
        colour: false,
        now: UNIX_EPOCH + Duration::from_millis(NOW_MS),
    };
    let code = run_on(operator, globals, command(), &mut terminal).await;
    (code, String::from_utf8(out).expect("utf-8"), String::from_utf8(err).expect("utf-8"))
}

/// A backup of the cluster east, and the pieces in which it comes.
fn backup() -> (Vec<u8>, Vec<Result<wire::BackupPiece, Status>>) {
    let (domain, name) = ("east.mesh.internal".parse().expect("domain"), "east".parse().expect("name"));
    let (signer, _) = LocalSigner::generate(&domain, &name, now()).expect("keys");
    let mut file = Vec::new();
    let mut writer = Writer::new(&[7; 32], &signer.candidate(), now(), &mut file).expect("begun");
    writer.push(&[1; 200_000], &mut file);
    writer.finish(&signer, &mut file).expect("signed");
    let summary = wire::BackupSummary {
        cluster: "east".into(),
        cluster_id: signer.candidate().id.to_string(),
        created_at_ms: NOW_MS,
        rows: 2,
        bytes: file.len() as u64,
    };
    let first = wire::BackupPiece { summary: Some(summary), data: Vec::new() };
    let rest = file.chunks(60_000).map(|data| Ok(wire::BackupPiece { summary: None, data: data.to_vec() }));
    (file.clone(), [Ok(first)].into_iter().chain(rest).collect())
}

/// Runs `backup create -o FILE`: exit code and words.
async fn create(socket: &Path, file: &Path) -> (u8, String) {
    let (mut out, mut err, mut input) = (Vec::new(), Vec::new(), Cursor::new(Vec::new()));
    let mut terminal = Terminal {
        out: &mut out,
        err: &mut err,
        input: &mut input,
        asks: false,
        colour: false,
        now: UNIX_EPOCH + Duration::from_millis(NOW_MS),
    };
    let globals = Globals { socket: socket.to_owned() };
    let code = create_backup_on(CreateBackup { file: file.to_owned() }, globals, &mut terminal).await;
    assert_eq!(out, b"", "a backup's words are no data");
    (code, String::from_utf8(err).expect("utf-8"))
}

#[tokio::test]
async fn a_backup_is_a_file_of_its_own_and_overwrites_none() {
    use std::os::unix::fs::PermissionsExt;
    let (bytes, pieces) = backup();
    let server = serve(Gateway { backup: pieces, ..Gateway::default() }).await;
    let file = server.socket.with_file_name("east.hansebak");
    let (code, words) = create(&server.socket, &file).await;
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("east") && words.contains("2 rows") && words.contains("key file"), "{words}");
    assert_eq!(std::fs::read(&file).expect("read"), bytes);
    assert_eq!(file.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);

    let (code, words) = create(&server.socket, &file).await;
    assert_eq!(code, 5);
    assert!(words.contains("not overwritten") && words.contains("east.hansebak"), "{words}");
    assert_eq!(std::fs::read(&file).expect("read"), bytes);
}

#[tokio::test]
async fn a_backup_that_is_not_whole_leaves_no_file() {
    let (_, pieces) = backup();
    let changed = |change: fn(&mut Vec<Result<wire::BackupPiece, Status>>)| {
        let mut pieces = pieces.clone();
        change(&mut pieces);
        pieces
    };
    let flip: fn(&mut Vec<Result<wire::BackupPiece, Status>>) = |pieces| {
        if let Some(Ok(piece)) = pieces.get_mut(2) {
            piece.data[100] ^= 1;
        }
    };
    let other: fn(&mut Vec<Result<wire::BackupPiece, Status>>) = |pieces| {
        if let Some(Ok(wire::BackupPiece { summary: Some(summary), .. })) = pieces.get_mut(0) {
            summary.cluster_id = "ab".repeat(32);
        }
    };
    for (change, code, wanted) in [
        (changed(|pieces| drop(pieces.pop())), 5, "not whole"),
        (changed(|pieces| pieces.truncate(1)), 5, "gave 0 bytes"),
        (changed(|pieces| drop(pieces.remove(0))), 5, "does not begin like a backup"),
        (changed(|pieces| pieces.push(Err(Status::unavailable("the signer is away")))), 3, "the signer is away"),
        (changed(flip), 5, "the signature at byte"),
        (changed(other), 5, "it is signed by cluster"),
        (Vec::new(), 5, "does not begin like a backup"),
    ] {
        let server = serve(Gateway { backup: change, ..Gateway::default() }).await;
        let file = server.socket.with_file_name("east.hansebak");
        let (found, words) = create(&server.socket, &file).await;
        assert_eq!(found, code, "{wanted}: {words}");
        assert!(words.contains(wanted), "{wanted}: {words}");
        assert!(!file.exists(), "{wanted}: a file was left");
    }
}

#[tokio::test]
async fn a_token_stands_alone_on_stdout() {
    let server = serve(Gateway::default()).await;
    let (code, out, err) = run(&server.socket, "link token west --ttl 15m", "").await;
    assert_eq!((code, out.as_str()), (0, "hanse1.c2VjcmV0\n"));
    assert!(err.contains("2023-11-14T22:28:20Z (in 15m)") && err.contains("hanse link join"), "{err}");
    assert!(!err.contains(SECRET), "{err}");
    let (code, out, err) = run(&server.socket, "workload token web.shop", "").await;
    assert_eq!((code, out.as_str()), (0, "hansew1.c2VjcmV0\n"));
    assert!(err.contains("web.shop") && err.contains("token_file"), "{err}");
}

#[tokio::test]
async fn a_write_that_waits_says_who_has_not_confirmed_it_and_exits_1() {
    let server = serve(Gateway { no: true, ..Gateway::default() }).await;
    let (code, out, err) = run(&server.socket, "intention deny web.shop payments.billing --wait", "").await;
    assert_eq!(code, 1, "{err}");
    assert!(out.contains("4/5, onprem 40s behind"), "{out}");
    assert!(err.contains("not in force everywhere") && err.contains("onprem 40s behind"), "{err}");
    let (code, ..) = run(&server.socket, "intention deny web.shop payments.billing", "").await;
    assert_eq!(code, 0, "without --wait nobody is waited for");
    let server = serve(Gateway::default()).await;
    let (code, _, err) = run(&server.socket, "intention delete web.shop payments.billing --wait", "").await;
    assert_eq!(code, 0, "{err}");
}

#[tokio::test]
async fn a_token_is_read_from_a_file_or_from_stdin() {
    let gateway = Gateway::default();
    let server = serve(gateway.clone()).await;
    let file = server.socket.with_file_name("token");
    std::fs::write(&file, format!("\n {SECRET}\n")).expect("write");
    for (line, input) in [
        (format!("link join -f {}", file.display()), ""),
        ("link join -f -".to_owned(), SECRET),
        ("link join".to_owned(), SECRET),
        ("link join --wait".to_owned(), SECRET),
    ] {
        let (code, out, err) = run(&server.socket, &line, input).await;
        assert_eq!(code, 0, "{line}: {err}");
        assert!(out.contains("Admitted by:  east") && out.contains("east, west"), "{line}: {out}");
        assert!(!out.contains(SECRET) && !err.contains(SECRET), "{line}: {out}{err}");
    }
    let asked = gateway.asked.lock().expect("lock");
    let joins: Vec<_> = asked.iter().filter(|asked| asked.starts_with("JoinRequest")).collect();
    assert_eq!(joins.len(), 4);
    assert!(joins.iter().all(|join| **join == format!("JoinRequest {{ token: {SECRET:?} }}")), "{joins:?}");
}

#[tokio::test]
async fn no_token_is_usage_and_names_what_to_do() {
    let server = serve(Gateway::default()).await;
    let (code, _, err) = run(&server.socket, "link join -f -", " \n").await;
    assert_eq!(code, 2);
    assert!(err.contains("hanse link token"), "{err}");
    let (code, _, err) = run(&server.socket, "link join -f /nowhere/token", "").await;
    assert_eq!(code, 2);
    assert!(err.contains("/nowhere/token"), "{err}");
    let (code, _, err) = run(&server.socket, "link join -f -", &"x".repeat(70_000)).await;
    assert_eq!(code, 2);
    assert!(err.contains("64 KiB"), "{err}");
}

#[tokio::test]
async fn the_exit_code_says_what_the_decision_was() {
    for (no, wanted) in [(false, 0), (true, 1)] {
        let server = serve(Gateway { no, ..Gateway::default() }).await;
        for line in ["intention check web.shop payments.billing", "check", "dns payments.billing.east.mesh.internal"] {
            let (code, _, err) = run(&server.socket, line, "").await;
            assert_eq!(code, wanted, "{line}: {err}");
        }
    }
}

#[tokio::test]
async fn the_exit_code_says_whose_fault_it_was() {
    for (code, wanted) in [
        (Code::InvalidArgument, 2),
        (Code::PermissionDenied, 4),
        (Code::Unauthenticated, 4),
        (Code::NotFound, 5),
        (Code::FailedPrecondition, 5),
        (Code::Internal, 5),
    ] {
        let server = serve(Gateway { broken: Some((code, "name it\u{1b}[0m well")), ..Gateway::default() }).await;
        let (exit, out, err) = run(&server.socket, "service list", "").await;
        assert_eq!(exit, wanted, "{code:?}");
        assert_eq!((out.as_str(), err.as_str()), ("", "hanse: name it?[0m well\n"));
    }
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_told_apart_from_one_that_refuses() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("hanse.sock");
    let (code, _, err) = run(&path, "status", "").await;
    assert_eq!(code, 3);
    assert!(err.contains("is `hanse gateway` running?") && err.contains("HANSE_SOCKET"), "{err}");
    assert!(err.contains(path.to_str().expect("path")), "{err}");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let (code, _, err) = run(&path, "status", "").await;
    assert_eq!(code, 3);
    assert!(err.contains("nothing answers"), "{err}");
    let error = Client::connect(&path).await.expect_err("nobody listens");
    assert_eq!(error.exit_code(), 3);
}

#[tokio::test]
async fn machines_get_the_reply_and_nothing_else_on_stdout() {
    let server = serve(Gateway::default()).await;
    let (code, out, _) = run(&server.socket, "intention list -o json", "").await;
    assert_eq!(code, 0);
    let value: serde_json::Value = serde_json::from_str(&out).expect("json");
    let rule = value.pointer("/intentions/0").expect("an intention");
    assert_eq!(rule.get("action").and_then(|v| v.as_str()), Some("allow"));
    assert_eq!(rule.get("written_at_ms").and_then(serde_json::Value::as_u64), Some(NOW_MS));
    let (_, out, _) = run(&server.socket, "service list -o yaml", "").await;
    assert!(out.contains("name: payments.billing.east\n") && out.contains("exported_to: []\n"), "{out}");
    let (_, out, _) = run(&server.socket, "dns a.b.east.mesh.internal AAAA -o json", "").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!(value.get("type").and_then(|v| v.as_str()), Some("AAAA"));
    let (_, out, _) = run(&server.socket, "link token west -o json", "").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!(value.get("token").and_then(|v| v.as_str()), Some(SECRET));
}

#[tokio::test]
async fn a_rule_that_does_not_count_is_not_passed_over() {
    let server = serve(Gateway { no: true, ..Gateway::default() }).await;
    let (code, out, err) = run(&server.socket, "intention deny web.shop payments.billing", "").await;
    assert_eq!(code, 0);
    assert!(out.contains("east is no lawmaker"), "{out}");
    assert!(err.contains("does not count here: east is no lawmaker"), "{err}");
    let (_, _, err) = run(&server.socket, "intention delete web.shop payments.billing", "").await;
    assert_eq!(err, "");
}

#[tokio::test]
async fn every_other_verb_answers() {
    let gateway = Gateway::default();
    let server = serve(gateway.clone()).await;
    for (line, wanted) in [
        ("status", "Cluster:"),
        ("link list", "west"),
        ("link status west", "State:"),
        ("link tokens", "REFUSALS"),
        ("cluster list", "?[31meast"),
        ("workload list", "SVID ENDS"),
        ("service register payments.billing --port 8080", "payments.billing.east"),
        ("service export payments.billing --to west --when-stale deny --lease 90s", "8080"),
        ("service export payments.billing --nobody", "8080"),
        ("intention allow web.shop payments.billing", "web.shop.east"),
        ("intention delete web.shop payments.billing --layer rule", "deleted"),
        ("cert status", "TRUST DOMAIN"),
        ("cert status", "rotation of the root: retired"),
        ("cert rotate-root --without onprem", "published"),
        ("cert rotate-root", "2 of 3 members have acknowledged"),
        ("cert rotate-root", "onprem: 40 s behind, left out"),
        ("cert rotate-root --wait", "retired"),
        ("cert rotate-root --abort", "given up"),
        ("cert rotate-intermediate", "intermediate 0bb0 signs from now on; the last certificate by 0aff ends"),
        ("cert list", "0aff10"),
        ("cert list", "REVOKED BY"),
        ("cert revoke 0a:ff:10", "revoked 0aff10 of spiffe://east.mesh.internal/ns/shop/sa/web"),
        ("reload", "log.level"),
        ("log debug", "debug"),
        ("version", "hanse 0."),
        ("completions bash", "complete"),
    ] {
        let (code, out, err) = run(&server.socket, line, "").await;
        assert_eq!(code, 0, "{line}: {err}");
        assert!(out.contains(wanted), "{line}: {out}");
    }
    let (code, out, err) = run(&server.socket, "link remove west", "").await;
    assert_eq!(code, 0);
    assert!(out.contains("blocked") && err.contains("west is blocked?[0m."), "{out}{err}");
    let asked = gateway.asked.lock().expect("lock").join("\n");
    for wanted in [
        r#"RegisterServiceRequest { service: "payments.billing", port: 8080, accounts: [], when_stale: "", lease_ms: 0 }"#,
        r#"ExportServiceRequest { service: "payments.billing", to: ["west"], nobody: false, when_stale: "deny", lease_ms: 90000 }"#,
        r#"ExportServiceRequest { service: "payments.billing", to: [], nobody: true, when_stale: "", lease_ms: 0 }"#,
        r#"layer: "rule", action: "", wait_ms: 0 }"#,
        r#"ListLinksRequest { cluster: "west" }"#,
        r#"RotateRootRequest { without: ["onprem"] }"#,
        r#"RevokeCertificateRequest { serial: "0a:ff:10" }"#,
    ] {
        assert!(asked.contains(wanted), "{wanted}\nnot in\n{asked}");
    }
}

#[tokio::test]
async fn waiting_for_a_rotation_ends_with_a_no_and_the_names_of_those_who_are_waited_for() {
    let server = serve(Gateway { no: true, ..Gateway::default() }).await;
    let (code, out, err) = run(&server.socket, "cert rotate-root --wait --timeout 1s", "").await;
    assert_eq!(code, 1, "{err}");
    assert!(out.contains("published"), "{out}");
    for wanted in ["within 1s", "it goes on", "gateway's log"] {
        assert!(err.contains(wanted), "{wanted}: {err}");
    }
}

#[tokio::test]
async fn decisions_about_members_say_what_is_now_the_case() {
    let gateway = Gateway::default();
    let server = serve(gateway.clone()).await;
    for (line, wanted) in [
        ("cluster block west", "blocked"),
        ("cluster approve west@abcdef", "active"),
        ("cluster evict onprem --yes", "west or north"),
        ("cluster lawmaker west on", "active"),
        ("cluster lawmaker west off", "active"),
    ] {
        let (code, out, err) = run(&server.socket, line, "").await;
        assert_eq!(code, 0, "{line}: {err}");
        assert!(out.contains(wanted) && out.contains("STILL NEEDED"), "{line}: {out}");
        assert!(err.contains(" is ") && !err.contains('\u{1b}'), "{line}: {err}");
    }
    let (code, out, err) = run(&server.socket, "cluster leave --yes", "").await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("Not told:    north") && err.contains("alone now"), "{out}{err}");
    let (_, out, _) = run(&server.socket, "cluster evict onprem --yes -o json", "").await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("json");
    let field = |name: &str| value.get(name).cloned().unwrap_or_default();
    assert_eq!((field("state"), field("for_good")), ("suspended".into(), false.into()));
    assert_eq!(field("needs"), serde_json::json!(["west", "north"]));
    assert_eq!(field("evicted_by"), serde_json::json!(["east"]));
    let asked = gateway.asked.lock().expect("lock").join("\n");
    for wanted in [r#"SetLawmakerRequest { cluster: "west", on: true }"#, r#"{ cluster: "west", on: false }"#] {
        assert!(asked.contains(wanted), "{asked}");
    }
}

#[tokio::test]
async fn what_cannot_be_undone_is_told_and_asked_first() {
    let gateway = Gateway::default();
    let server = serve(gateway.clone()).await;
    for (line, told) in [("cluster evict west", "live connections"), ("cluster leave", "its services vanish")] {
        for answer in ["", "no\n", "y\n", "yess\n"] {
            let (code, out, err) = run_by(true, &server.socket, line, answer).await;
            assert_eq!((code, out.as_str()), (1, ""), "{line}, {answer:?}");
            assert!(err.contains(told) && err.contains("nothing was done"), "{err}");
        }
        let (code, _, err) = run_by(false, &server.socket, line, "yes\n").await;
        assert_eq!(code, 2, "a script says --yes");
        assert!(err.contains("--yes"), "{err}");
    }
    assert!(gateway.asked.lock().expect("lock").is_empty());
    for line in ["cluster evict west", "cluster leave"] {
        let (code, _, err) = run_by(true, &server.socket, line, "yes\n").await;
        assert_eq!(code, 0, "{err}");
    }
    assert_eq!(gateway.asked.lock().expect("lock").len(), 2);
}

#[tokio::test]
async fn completions_know_what_the_executable_adds() {
    let whole = command().subcommand(clap::Command::new("gateway"));
    let Line { globals, operator } = Line::try_parse_from(["hanse", "completions", "zsh"]).expect("line");
    let (mut out, mut err, mut input) = (Vec::new(), Vec::new(), std::io::empty());
    let mut terminal =
        Terminal { out: &mut out, err: &mut err, input: &mut input, asks: false, colour: false, now: UNIX_EPOCH };
    assert_eq!(run_on(operator, globals, whole, &mut terminal).await, 0);
    let script = String::from_utf8(out).expect("utf-8");
    assert!(script.contains("intention") && script.contains("gateway"));
}
