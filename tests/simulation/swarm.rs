//! What a seed turns on: each run disables some kinds of fault entirely and weights the rest wildly, since rare
//! coincidences are found where much else is quiet.

use fastrand::Rng;
#[cfg(feature = "fault-points")]
use walhook::flow::driver::Flaw;

/// Classic bugs, brought back on the driver's or the servers' side, to see that the oracle notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "fault-points"), allow(dead_code, reason = "some are planted into the driver itself"))]
pub enum Bug {
    None,
    /// What has arrived is confirmed.
    ConfirmOnReceipt,
    /// The position of every keepalive is confirmed, within a transaction too.
    ConfirmKeepalives,
    /// A commit is confirmed a record beyond its end.
    ConfirmPastCommit,
    /// Messages are known to the server by their row's LSN, which rows of one COPY share.
    IdOfRowLsn,
    /// A message that was refused, or that nothing was heard of, is sent again by itself, whatever was stored since.
    RetryOneEvent,
    /// A large value that did not change is taken for null.
    NullForUnchanged,
    /// After a failure the messages are sent again without reading the stream's tail.
    BlindRetry,
    /// As if messages did not say which sequence they expect.
    NoExpectedSequence,
    /// What comes after a dead letter does not wait for its row.
    IgnoreHolds,
    /// A dead letter counts as written as a dead letter when its row is sent off.
    BuryOnSend,
    /// At the start nothing is taken as stored.
    IgnoreTail,
    /// A message is begun on a connection that was left in the midst of another.
    ReuseTornConnection,
    /// Rows of the history count as durable when they are sent off.
    RecordOnSend,
    /// A claim check is published before what it is for is stored.
    ClaimOnSend,
    /// A schema counts as stored once it is sent off.
    SchemaOnSend,
    /// A session begins with the rules as they are now.
    RulesAsOfNow,
    /// Versions of rules count as durable when they are sent off.
    RulesOnSend,
    /// Versions are deleted that only positions before the confirmed one need, to which a crash goes back.
    PruneAtConfirmed,
    /// What is due is confirmed without asking whether the streams have it still.
    ConfirmUnasked,
    /// Whatever a stream has lost, it is filled again from where it ends.
    TrustAnyTail,
    /// The server stores each message of a batch as it comes, as one does that knows none.
    StoreBatchesAsTheyCome,
    /// The same name means the same stream, whichever server a configuration names.
    OneServer,
    /// What goes to core NATS counts as taken in when it is sent off.
    SettleCoreOnSend,
    /// JetStream and core NATS publish at the same time after a switch, into the same stream.
    BothWaysAtOnce,
    /// A lane that a switch has left behind stays open, and goes on when it is switched back, without a look at its stream.
    KeepIdleLaneOpen,
    /// What core NATS brought into a stream counts as the lane's own last message.
    CoreAsOurs,
    /// A stream to which nothing leads any more is not asked for what it has before that is confirmed.
    LeaveRetiredUnasked,
    /// While core NATS publishes, a lane that a switch has left behind waits to be opened, and confirming waits for it.
    RetireInTurn,
    /// Versions of rules do not say that a row was deleted.
    KeepDeletedRules,
    /// After an amendment the versions stay that earlier sessions wrote for positions behind it.
    KeepVoidRules,
    /// In a strict stream everything before its last event counts as stored, whichever rules have been amended since.
    TrustAmended,
    /// A run goes on behind the messages of a newer one.
    IgnoreNewerRun,
    /// A run goes on behind messages of a history that PostgreSQL has left.
    IgnoreFork,
    /// A stream that was made anew counts as the one that was known.
    TrustRecreated,
    /// A lane whose answers do not come is not opened again.
    WaitForEver,
    /// A configuration that was given up is not tried again when its row is written.
    GiveUpForGood,
}

impl Bug {
    /// The decision of the driver that is made wrongly.
    #[cfg(feature = "fault-points")]
    pub fn flaw(self) -> Option<Flaw> {
        Some(match self {
            Bug::BothWaysAtOnce => Flaw::BothWaysAtOnce,
            Bug::KeepIdleLaneOpen => Flaw::KeepIdleLaneOpen,
            Bug::ReuseTornConnection => Flaw::ReuseTornConnection,
            Bug::TrustAnyTail => Flaw::TrustAnyTail,
            Bug::LeaveRetiredUnasked => Flaw::LeaveRetiredUnasked,
            Bug::RetireInTurn => Flaw::RetireInTurn,
            Bug::IgnoreNewerRun => Flaw::IgnoreNewerRun,
            Bug::IgnoreFork => Flaw::IgnoreFork,
            Bug::TrustRecreated => Flaw::TrustRecreated,
            Bug::WaitForEver => Flaw::WaitForEver,
            Bug::GiveUpForGood => Flaw::GiveUpForGood,
            _ => return None,
        })
    }
}

/// Chances in thousandths, per step or per occasion.
#[derive(Debug)]
pub struct Swarm {
    pub steps: u64,
    pub window_events: usize,
    pub window_bytes: usize,
    pub history_bytes: usize,
    pub max_payload: usize,
    pub max_msg_size: usize,
    /// In steps.
    pub dedup_window: u64,
    /// R1 on 2.12 and later; otherwise as R3 and 2.10 do.
    pub expected_before_dedup: bool,
    pub history: &'static str,
    pub streams: usize,
    /// NATS configurations, each with a server of its own.
    pub configs: i32,
    pub tables: usize,
    pub big_rows: u32,
    pub huge_rows: u32,
    pub ddl: u32,
    pub configuration: u32,
    pub halt: u32,
    pub keepalives: u32,
    pub own_message_ids: u32,
    pub crash_us: u32,
    pub crash_postgres: u32,
    pub crash_nats: u32,
    pub forget: u32,
    /// In steps; 0: none.
    pub confirm_delay: u64,
    pub cut: u32,
    pub lose_ack: u32,
    pub double_ack: u32,
    pub refuse: u32,
    pub swallow: u32,
    pub too_large: u32,
    pub change_max_payload: u32,
    pub foreign: u32,
    pub late: u32,
    pub lock_history: u32,
    /// Whether lanes are taken for away, at any time.
    pub away: u32,
    /// How many bytes a socket takes at a time.
    pub write_max: usize,
    /// What each stream's row wants of batches: nothing, `atomic` or `fsync`.
    pub batches: [&'static str; 3],
    /// How many messages the server takes as one batch; 1 where it takes none.
    pub batch_max: usize,
    /// Ordering and batches of the streams' rows change too.
    pub flips: bool,
    /// After how many steps it abandons one that gets no more messages.
    pub batch_timeout: u64,
    /// A run that crashes goes on publishing for a while, as one that was cut off from PostgreSQL alone.
    pub linger: u32,
    /// A stream is deleted and made again.
    pub recreate: u32,
    /// A standby is promoted that lacks the last transactions.
    pub fail_over: u32,
    /// `max_connections` and `max_reconnect_attempts` of the configurations; 0: no limit.
    pub max_connections: u8,
    pub max_attempts: u8,
}

impl Swarm {
    pub fn new(rng: &mut Rng) -> Swarm {
        let mut knob = |most: u32| {
            if rng.bool() {
                return 0;
            }
            let weights = [1, 3, 10, 30, 100, 300, 1000];
            weights[rng.usize(..weights.len())].min(most)
        };
        let chances = [
            knob(300),
            knob(300),
            knob(300),
            knob(100),
            knob(1000),
            knob(1000),
            knob(1000),
            knob(20),
            knob(20),
            knob(20),
            knob(500),
            knob(50),
            knob(300),
            knob(300),
            knob(300),
            knob(300),
            knob(100),
            knob(20),
            knob(300),
            knob(1000),
            knob(30),
            knob(1),
        ];
        let [
            big_rows,
            huge_rows,
            ddl,
            configuration,
            halt,
            keepalives,
            own_message_ids,
            crash_us,
            crash_postgres,
            crash_nats,
            forget,
            cut,
            lose_ack,
            double_ack,
            refuse,
            swallow,
            too_large,
            change_max_payload,
            foreign,
            late,
            lock_history,
            away,
        ] = chances;
        let pick = |rng: &mut Rng, choices: &[usize]| choices[rng.usize(..choices.len())];
        // Dice of their own, so that seeds from before tell the same story.
        let mut dice = Rng::with_seed(rng.clone().u64(..));
        let batched = dice.bool();
        let batches = [(); 3].map(|()| if batched { ["", "atomic", "fsync"][dice.usize(..3)] } else { "" });
        let batch_max = pick(&mut dice, &[1, 2, 3, 10, 1000, 1000, 1000]);
        let batch_timeout = pick(&mut dice, &[5, 100]) as u64;
        let flips = dice.bool();
        let configs = if dice.bool() { 1 } else { 2 };
        let linger = if dice.bool() { 500 } else { 0 };
        let recreate = if dice.u8(..12) == 0 { 10 } else { 0 };
        let fail_over = if dice.u8(..8) == 0 { 10 } else { 0 };
        let max_connections = [0, 2, 3][dice.usize(..3)];
        let max_attempts = [0, 0, 1, 3][dice.usize(..4)];
        Swarm {
            steps: rng.u64(100..600),
            window_events: pick(rng, &[1, 2, 5, 20, 100]),
            window_bytes: pick(rng, &[1, 1000, 5000, 1 << 20]),
            history_bytes: pick(rng, &[1, 2000, 20_000, 1 << 20]),
            max_payload: 1 << 20,
            max_msg_size: pick(rng, &[2900, 1 << 20]),
            dedup_window: pick(rng, &[1, 20, 200, 100_000]) as u64,
            expected_before_dedup: rng.bool(),
            history: ["full", "full", "failures", "off"][rng.usize(..4)],
            streams: rng.usize(1..=3),
            configs,
            tables: rng.usize(1..=3),
            big_rows,
            huge_rows,
            ddl,
            configuration,
            halt,
            keepalives,
            own_message_ids,
            crash_us,
            crash_postgres,
            crash_nats,
            // It breaks the condition of the promise, and then little can be asked.
            forget: if rng.u8(..10) == 0 { forget } else { 0 },
            confirm_delay: 0,
            cut,
            lose_ack,
            double_ack,
            refuse,
            swallow,
            too_large,
            change_max_payload,
            foreign,
            late,
            lock_history,
            away,
            write_max: pick(rng, &[7, 100, 2000, 1 << 20]),
            batches,
            batch_max,
            batch_timeout,
            flips,
            linger,
            recreate,
            fail_over,
            max_connections,
            max_attempts,
        }
    }
}

/// Whether something with a chance of so many thousandths happens.
pub fn happens(rng: &mut Rng, thousandths: u32) -> bool {
    thousandths > 0 && rng.u32(..1000) < thousandths
}
