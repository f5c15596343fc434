//! Passing receipts on: each at once while members are few, and within a budget of bytes where they are many.
//!
//! In: receipts that were found good, who came. Out: frames on control streams. Never: judges a receipt.
//!
//! An edge that links n members with each other passes on n² receipts in each interval. Beyond what the budget allows,
//! recipients take turns: each gets the newest in one frame, and what does not fit is left out, since a later receipt
//! says it again.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use federation_model::ClusterId;
use prost::Message;
use proto::federation as wire;
use tokio::time::Instant;

use crate::{
    Shared,
    limits::{CONTROL_QUEUE, RECEIPTS_BYTES_MAX, RECEIPTS_MAX},
    metrics,
    registry::Session,
    wire::Frame,
};

/// Bytes of others' receipts that this edge passes on in a second, over all links, on average and at once.
const BYTES_PER_SECOND: f64 = 4.0 * 1024.0 * 1024.0;
const BYTES_BURST: f64 = 4.0 * 1024.0 * 1024.0;
/// What a frame costs besides its bytes.
const FRAME_BYTES: usize = 100;
/// Bytes of receipts that wait for recipients whose turn has not come.
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// Time between two looks at whose turn it is, where members are many.
const LOOK: Duration = Duration::from_millis(100);

/// A receipt on its way.
struct Passing {
    maker: ClusterId,
    /// Who brought it.
    from: ClusterId,
    receipt: Arc<wire::Receipt>,
}

/// How far one link is.
struct Recipient {
    /// Number of the first receipt that it was not offered yet.
    seen: u64,
    /// How many receipts of this cluster's own account it got.
    owed: usize,
    /// Whose kept receipts it gets next; `None` once it got everybody's.
    catch_up: Option<ClusterId>,
    /// When its turn was.
    served: Option<Instant>,
}

/// What is passed on, to whom, and what it may cost.
pub(crate) struct Relay {
    waiting: VecDeque<Passing>,
    bytes: usize,
    /// Number of the next receipt that comes.
    next: u64,
    /// This cluster's own words: a whole account and what came since.
    own: Vec<Arc<wire::Receipt>>,
    recipients: BTreeMap<ClusterId, Recipient>,
    /// Whose turn was the last.
    turn: Option<ClusterId>,
    left: f64,
    at: Instant,
}

impl Relay {
    pub(crate) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            next: 0,
            own: Vec::new(),
            recipients: BTreeMap::new(),
            turn: None,
            left: BYTES_BURST,
            at: Instant::now(),
        }
    }

    /// One that came gets what is kept, and then what comes.
    pub(crate) fn connected(&mut self, member: ClusterId) {
        let first = ClusterId::from_digest(federation_model::Digest::ZERO);
        let recipient = Recipient { seen: self.next, owed: 0, catch_up: Some(first), served: None };
        self.recipients.insert(member, recipient);
    }

    /// Whether there is one that has nothing of this cluster's own account yet.
    pub(crate) fn has_newcomers(&self) -> bool {
        self.recipients.values().any(|recipient| recipient.owed == 0)
    }

    /// Others' receipts that are to be passed on.
    pub(crate) fn pass(&mut self, maker: ClusterId, from: ClusterId, receipt: wire::Receipt) {
        self.bytes += receipt.encoded_len();
        self.waiting.push_back(Passing { maker, from, receipt: Arc::new(receipt) });
        self.next += 1;
        while self.bytes > WAITING_BYTES_MAX
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.bytes -= oldest.receipt.encoded_len();
        }
    }

    /// A new account of this cluster begins. `again`: those who know the last one get it all the same.
    pub(crate) fn begin_own(&mut self, again: bool) {
        for recipient in self.recipients.values_mut() {
            let knows = recipient.owed > 0 && recipient.owed >= self.own.len();
            recipient.owed = if knows && !again { usize::MAX } else { 0 };
        }
        self.own.clear();
    }

    /// A receipt of this cluster; `told` if everybody got it already.
    pub(crate) fn add_own(&mut self, receipt: wire::Receipt, told: bool) {
        let before = self.own.len();
        self.own.push(Arc::new(receipt));
        for recipient in self.recipients.values_mut().filter(|recipient| told && recipient.owed == before) {
            recipient.owed += 1;
        }
    }

    /// When somebody's turn comes next; `None` while it comes at once.
    pub(crate) fn due(&self, gather: Duration) -> Option<Instant> {
        (!gather.is_zero()).then(|| self.at + LOOK)
    }

    /// Serves whose turn it is, as long as the budget lasts. A recipient is served once in `gather`; without that,
    /// everybody gets everything.
    pub(crate) fn serve(&mut self, shared: &Shared, connected: &BTreeMap<ClusterId, Arc<Session>>, gather: Duration) {
        let earned = self.at.elapsed().as_secs_f64() * BYTES_PER_SECOND;
        self.left = (self.left + earned).min(BYTES_BURST);
        self.at = Instant::now();
        self.recipients.retain(|member, _| connected.contains_key(member));
        for _ in 0..self.recipients.len() {
            if self.left <= 0.0 {
                return;
            }
            let after = self.turn.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.recipients.range((after, Bound::Unbounded)).next().or(self.recipients.first_key_value());
            let Some((member, served)) = next.map(|(member, recipient)| (*member, recipient.served)) else { return };
            self.turn = Some(member);
            let Some(session) = connected.get(&member) else { continue };
            if served.is_some_and(|at| at.elapsed() < gather) {
                continue;
            }
            // Who does not keep up gets no more of what is only news of others.
            if !session.spoken.receipts || session.control.capacity() < CONTROL_QUEUE / 2 {
                continue;
            }
            let most = if gather.is_zero() { usize::MAX } else { RECEIPTS_BYTES_MAX };
            let batch = self.batch(shared, &member, most);
            self.send(session, batch);
        }
    }

    /// What a recipient gets now, at most so many bytes of it.
    fn batch(&mut self, shared: &Shared, member: &ClusterId, most: usize) -> Vec<wire::Receipt> {
        let Self { waiting, next, own, recipients, .. } = self;
        let Some(recipient) = recipients.get_mut(member) else { return Vec::new() };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut add = |receipt: wire::Receipt| {
            let length = receipt.encoded_len();
            let fits = batch.is_empty() || bytes + length <= most;
            if fits {
                bytes += length;
                batch.push(receipt);
            }
            fits
        };
        while let Some(receipt) = own.get(recipient.owed) {
            if !add(receipt.as_ref().clone()) {
                break;
            }
            recipient.owed += 1;
        }
        let first = *next - waiting.len() as u64;
        let from = usize::try_from(recipient.seen.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut left_out = first.saturating_sub(recipient.seen);
        shared.receipts.read(|held, _| {
            let new = waiting.iter().skip(from);
            for passing in new.filter(|new| new.from != *member && held.needs(member, &new.maker)) {
                if !add(passing.receipt.as_ref().clone()) {
                    left_out += 1;
                }
            }
            recipient.seen = *next;
            while let Some(at) = recipient.catch_up {
                let mut kept = held.kept_from(&at);
                let Some((maker, raw)) = kept.next() else {
                    recipient.catch_up = None;
                    break;
                };
                let receipts = raw.iter().filter_map(|raw| wire::Receipt::decode(&**raw).ok());
                if *maker != shared.own && !receipts.map(&mut add).fold(true, |all, fit| all & fit) {
                    break;
                }
                recipient.catch_up = kept.next().map(|(maker, _)| *maker);
            }
        });
        if left_out > 0 {
            ::metrics::counter!(metrics::DROPPED, "queue" => "relay").increment(left_out);
        }
        if !batch.is_empty() {
            recipient.served = Some(Instant::now());
        }
        batch
    }

    /// Sends receipts in as few frames as the peer's version allows.
    fn send(&mut self, session: &Session, batch: Vec<wire::Receipt>) {
        let mut frame = Vec::new();
        let mut bytes = 0;
        let mut cost = 0;
        let mut flush = |frame: &mut Vec<wire::Receipt>| {
            let receipts = std::mem::take(frame);
            if session.spoken.batches && receipts.len() > 1 {
                cost += FRAME_BYTES + receipts.iter().map(Message::encoded_len).sum::<usize>();
                session.tell(Frame::Receipts(wire::Receipts { receipts }));
                return;
            }
            for receipt in receipts {
                cost += FRAME_BYTES + receipt.encoded_len();
                session.tell(Frame::Receipt(receipt));
            }
        };
        for receipt in batch {
            let length = receipt.encoded_len();
            if frame.len() >= RECEIPTS_MAX || (!frame.is_empty() && bytes + length > RECEIPTS_BYTES_MAX) {
                flush(&mut frame);
                bytes = 0;
            }
            bytes += length;
            frame.push(receipt);
        }
        flush(&mut frame);
        self.left -= cost as f64;
    }
}
