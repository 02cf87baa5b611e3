//! The pure core against models of PostgreSQL and JetStream, from seeds.
//!
//! `WALHOOK_SEEDS=N` runs N seeds, `WALHOOK_SEED=N` replays one and tells its story.

#![allow(clippy::unwrap_used)]

mod configuration;
mod jetstream;
mod oracle;
mod postgres;
mod publishing;
mod swarm;
mod world;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use swarm::Bug;
use world::World;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs a seed; `Err` with what did not hold, be it an assertion of the core's own.
fn run(seed: u64, bug: Bug, with_story: bool) -> Result<World, String> {
    let mut world = World::new(seed, bug);
    world.log = with_story.then(String::new);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.live())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
    });
    if let Some(story) = &world.log {
        eprintln!("{story}");
    }
    outcome.map_err(|problem| format!("step {}: {problem}", world.now())).map(|()| world)
}

/// Seeds that have found a bug, as far as the models have not changed since: events beyond the WAL received so far, a hole
/// in a shared stream, a stream's row that came and went in a moment, streams that nothing leads to any more and that are not asked
/// what they have.
#[test]
fn seeds_that_have_found_a_bug_keep_the_promise() {
    for seed in [1, 26, 14_331, 24_993, 52_710, 101_499, 102_737, 113_387] {
        run(seed, Bug::None, false).unwrap_or_else(|problem| panic!("WALHOOK_SEED={seed}: {problem}"));
    }
}

/// The harness must be able to fail: with a classic bug brought back some seed must, and soon.
fn check_caught(bug: Bug, within: u64) {
    let caught = (0..within).find_map(|seed| run(seed, bug, false).err().map(|problem| (seed, problem)));
    let (seed, problem) = caught.unwrap_or_else(|| panic!("{bug:?} goes unnoticed in {within} seeds"));
    eprintln!("{bug:?} is caught after {} seeds: WALHOOK_SEED={seed}, {problem}", seed + 1);
}

#[test]
fn confirming_on_receipt_is_caught() {
    check_caught(Bug::ConfirmOnReceipt, 200);
}

#[test]
fn confirming_every_keepalive_is_caught() {
    check_caught(Bug::ConfirmKeepalives, 500);
}

#[test]
fn confirming_past_the_end_of_a_commit_is_caught() {
    check_caught(Bug::ConfirmPastCommit, 500);
}

#[test]
fn an_id_made_of_the_rows_lsn_is_caught() {
    check_caught(Bug::IdOfRowLsn, 500);
}

#[test]
fn sending_one_event_again_by_itself_is_caught() {
    check_caught(Bug::RetryOneEvent, 500);
}

#[test]
fn null_for_a_value_that_did_not_change_is_caught() {
    check_caught(Bug::NullForUnchanged, 500);
}

#[test]
fn sending_again_without_reading_the_tail_is_caught() {
    check_caught(Bug::BlindRetry, 500);
}

#[test]
fn publishing_without_the_expected_sequence_is_caught() {
    check_caught(Bug::NoExpectedSequence, 500);
}

#[test]
fn not_waiting_for_dead_letters_is_caught() {
    check_caught(Bug::IgnoreHolds, 3000);
}

#[test]
fn taking_a_dead_letter_for_buried_when_it_is_sent_off_is_caught() {
    check_caught(Bug::BuryOnSend, 500);
}

#[test]
fn publishing_what_the_tail_shows_as_stored_is_caught() {
    check_caught(Bug::IgnoreTail, 500);
}

#[test]
fn taking_rows_of_the_history_for_durable_when_they_are_sent_off_is_caught() {
    check_caught(Bug::RecordOnSend, 500);
}

#[test]
fn beginning_a_session_with_the_rules_as_they_are_now_is_caught() {
    check_caught(Bug::RulesAsOfNow, 500);
}

#[test]
fn taking_versions_of_rules_for_durable_when_they_are_sent_off_is_caught() {
    check_caught(Bug::RulesOnSend, 3000);
}

#[test]
fn deleting_versions_of_rules_to_which_a_crash_goes_back_is_caught() {
    check_caught(Bug::PruneAtConfirmed, 500);
}

#[test]
fn publishing_a_claim_check_before_its_object_is_stored_is_caught() {
    check_caught(Bug::ClaimOnSend, 500);
}

#[test]
fn taking_a_schema_for_stored_when_it_is_sent_off_is_caught() {
    check_caught(Bug::SchemaOnSend, 500);
}

#[test]
fn confirming_what_is_due_without_asking_the_streams_is_caught() {
    check_caught(Bug::ConfirmUnasked, 3000);
}

#[cfg(feature = "fault-points")]
#[test]
fn filling_a_stream_again_whatever_it_has_lost_is_caught() {
    check_caught(Bug::TrustAnyTail, 3000);
}

#[test]
fn storing_a_batch_message_by_message_is_caught() {
    check_caught(Bug::StoreBatchesAsTheyCome, 500);
}

#[cfg(feature = "fault-points")]
#[test]
fn beginning_a_message_in_the_midst_of_another_is_caught() {
    check_caught(Bug::ReuseTornConnection, 3000);
}

#[test]
fn taking_streams_of_one_name_on_two_servers_for_one_is_caught() {
    check_caught(Bug::OneServer, 500);
}

#[test]
fn taking_what_goes_to_core_nats_for_taken_in_when_it_is_sent_off_is_caught() {
    check_caught(Bug::SettleCoreOnSend, 500);
}

#[cfg(feature = "fault-points")]
#[test]
fn publishing_by_jetstream_and_by_core_nats_at_once_is_caught() {
    check_caught(Bug::BothWaysAtOnce, 3000);
}

#[cfg(feature = "fault-points")]
#[test]
fn going_on_after_a_switch_without_a_look_at_the_stream_is_caught() {
    check_caught(Bug::KeepIdleLaneOpen, 3000);
}

#[test]
fn taking_a_message_of_core_nats_for_the_lanes_last_one_is_caught() {
    check_caught(Bug::CoreAsOurs, 3000);
}

#[cfg(feature = "fault-points")]
#[test]
fn not_asking_streams_to_which_nothing_leads_any_more_is_caught() {
    check_caught(Bug::LeaveRetiredUnasked, 500);
}

#[cfg(feature = "fault-points")]
#[test]
fn not_retiring_a_queue_while_core_nats_publishes_is_caught() {
    check_caught(Bug::RetireInTurn, 3000);
}

#[test]
fn versions_that_do_not_say_which_rows_were_deleted_are_caught() {
    check_caught(Bug::KeepDeletedRules, 500);
}

#[test]
fn taking_amended_events_for_stored_is_caught() {
    check_caught(Bug::TrustAmended, 3000);
}

#[test]
fn keeping_versions_that_an_amendment_made_void_is_caught() {
    check_caught(Bug::KeepVoidRules, 3000);
}

#[cfg(feature = "fault-points")]
#[test]
fn going_on_behind_a_newer_run_is_caught() {
    check_caught(Bug::IgnoreNewerRun, 500);
}

#[cfg(feature = "fault-points")]
#[test]
fn going_on_behind_a_history_that_postgresql_has_left_is_caught() {
    check_caught(Bug::IgnoreFork, 3000);
}

#[cfg(feature = "fault-points")]
#[test]
fn taking_a_stream_that_was_made_anew_for_the_known_one_is_caught() {
    check_caught(Bug::TrustRecreated, 3000);
}

#[cfg(feature = "fault-points")]
#[test]
fn waiting_for_answers_for_ever_is_caught() {
    check_caught(Bug::WaitForEver, 500);
}

#[cfg(feature = "fault-points")]
#[test]
fn giving_a_configuration_up_for_good_is_caught() {
    check_caught(Bug::GiveUpForGood, 500);
}

#[test]
fn every_seed_keeps_the_promise() {
    if let Some(seed) = number("WALHOOK_SEED") {
        run(seed, Bug::None, true).unwrap();
        return;
    }
    let first = number("WALHOOK_FIRST_SEED").unwrap_or(0);
    let seeds = number("WALHOOK_SEEDS").unwrap_or(1000);
    let (next, failed) = (AtomicU64::new(first), AtomicU32::new(0));
    let tally = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) < 10 {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    match run(seed, Bug::None, false) {
                        Ok(world) => {
                            let mut tally = tally.lock().unwrap();
                            for (what, count) in world.tally() {
                                *tally.entry(what).or_insert(0) += count;
                            }
                        }
                        Err(problem) => {
                            eprintln!("WALHOOK_SEED={seed}: {problem}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    eprintln!("{seeds} seeds: {:?}", tally.into_inner().unwrap());
    assert_eq!(failed, 0, "replay with WALHOOK_SEED=N");
}
