//! The plain status page: facts, links, nothing else.

use federation_link::Link;
use gateway_admin::{Status, StatusPage, Table};
use gateway_api::Api;

/// Reads what the API reads.
pub(crate) struct Page {
    pub(crate) api: Api,
    pub(crate) link: Link,
}

impl StatusPage for Page {
    fn status(&self) -> Status {
        let status = self.api.status();
        let facts = [
            ("cluster", status.cluster.clone()),
            ("trust domain", status.trust_domain),
            ("federation", status.federation),
            ("version", status.version),
            ("members", status.members.to_string()),
            ("sessions", status.sessions.to_string()),
            ("services", status.services.to_string()),
            ("intentions", status.intentions.to_string()),
            ("conflicts", status.conflicts.to_string()),
            ("workloads", status.workloads.to_string()),
            ("live connections", status.connections.to_string()),
            ("problems", if status.problems.is_empty() { "none".into() } else { status.problems.join("; ") }),
        ];
        let links = self.link.statuses().into_iter().map(|link| {
            let link = crate::backend::link_state(link);
            let milliseconds = |span: std::time::Duration| format!("{:.1} ms", span.as_secs_f64() * 1000.0);
            vec![
                link.name.to_string(),
                link.phase.as_str().to_owned(),
                link.rtt.map(milliseconds).unwrap_or_default(),
                link.data_age.map(milliseconds).unwrap_or_default(),
                link.tunnels.to_string(),
                link.error,
            ]
        });
        Status {
            title: format!("Hanse: {}", status.cluster),
            facts: facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            tables: vec![Table {
                heading: "Links".into(),
                columns: ["cluster", "state", "round trip", "data age", "tunnels", "error"].map(str::to_owned).into(),
                rows: links.collect(),
            }],
        }
    }
}
