//! The contract of every store, as tests that run on each of them. A test gets its own empty database and
//! uses the store only through its traits.

mod accounts;
mod audit;
mod damage;
mod leases;
mod model;
mod outbox;
mod patients;
mod projection;
mod races;
mod search;
mod sessions;
mod topic_log;
pub(super) mod world;

use std::sync::Arc;

use super::{Settings, Store, Use, migrate, open};

#[path = "../../tests/harness/postgres.rs"]
pub(super) mod server;

/// Returns a store in a directory that is removed with the test.
async fn sqlite() -> (tempfile::TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite:{}", directory.path().join("test.db").display());
    let settings = Settings { url, ..Settings::default() };
    (directory, open(&settings, Use::Serve).await.expect("a store"))
}

/// Returns the settings for a database of a test server, which may run with `fsync = off`.
pub(super) fn on_test_server(url: &str) -> Settings {
    Settings { url: url.to_owned(), fsync_off_allowed: true, ..Settings::default() }
}

/// Returns a store in a database that is dropped with the test.
async fn postgres() -> (server::Database, Arc<dyn Store>) {
    let database = server::Postgres::shared_fast().create_database().await;
    let settings = on_test_server(database.url());
    migrate(&settings).await.expect("a schema");
    (database, open(&settings, Use::Serve).await.expect("a store"))
}

macro_rules! contract {
    ($($module:ident { $($test:ident),* $(,)? })*) => {
        mod on_sqlite {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let (_place, store) = super::sqlite().await;
                super::$module::$test(store.clone()).await;
                store.close().await;
            })*)*
        }
        mod on_postgres {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let (_place, store) = super::postgres().await;
                super::$module::$test(store.clone()).await;
                store.close().await;
            })*)*
        }
    };
}

contract! {
    patients {
        a_life_is_recorded,
        a_mixed_batch_hurts_nobody,
        an_empty_batch_is_nothing,
        a_command_is_carried_out_once,
        versions_must_follow,
        a_deleted_id_is_never_used_again,
        deletion_and_change_free_the_address,
        a_change_of_case_keeps_the_address,
        an_address_freed_in_a_batch_is_not_free_within_it,
        one_address_twice_in_a_batch,
        the_own_address_is_a_conflict,
        a_registration_alone_and_in_company_decide_the_same,
        a_restricted_patient_is_kept_so_and_left_out_of_lists,
        history_is_in_order_and_limited,
        what_a_request_said_is_kept_with_its_event,
        texts_come_back_as_they_were,
    }
    search {
        every_order_goes_page_by_page,
        a_filter_finds_those_it_says,
        who_begins_with_it_is_found_once,
        whose_name_begins_with_it_is_found_by_that_alone,
        a_page_is_bounded_whatever_is_found_twice,
        pages_fit_together_whoever_comes_and_goes,
    }
    races {
        one_address_under_parallel_commits,
        crossing_addresses_do_not_deadlock,
        large_batches_in_parallel,
    }
    leases {
        the_number_of_shards_is_set_once,
        a_lease_is_taken_once,
        a_taker_learns_who_holds_what_it_did_not_get,
        a_lease_that_was_not_released_is_taken_after_its_last_renewal_alone,
        no_renewal_looks_like_another,
        a_new_epoch_is_had_once_and_by_its_holder_alone,
        a_released_lease_is_free,
        renewal_keeps_the_epoch,
        taking_ones_own_lease_again_fences_what_was_sent,
        a_commit_under_an_old_epoch_is_fenced,
        kinds_do_not_touch_each_other,
        one_taker_wins,
    }
    outbox {
        events_wait_in_the_order_of_commits,
        what_is_marked_does_not_come_back,
        what_a_broker_forgot_is_told_again,
        what_is_applied_is_not_told_again,
        a_call_that_puts_back_is_bounded,
        what_is_counted_ahead_keeps_what_is_missing,
        registrations_wait_for_an_account,
        depth_tells_the_oldest,
    }
    topic_log {
        a_log_is_begun_once_and_marks_for_an_earlier_one_have_no_effect,
        what_was_known_before_logs_had_numbers_needs_no_replay,
        anchors_rise_and_belong_to_their_log,
        a_replay_goes_on_where_it_was_and_new_events_do_not_wait_for_it,
        a_replay_leaves_out_what_is_too_old,
        a_parked_row_holds_back_its_patient_until_its_time,
    }
    projection {
        counts_add_up,
        repeats_have_no_effect,
        any_order_counts_each_once,
        offsets_never_go_back,
        offsets_belong_to_their_source,
        parallel_consumers_count_once,
    }
    accounts {
        a_patient_has_one_account,
        accounts_are_fenced,
        users_are_kept,
        an_administrator_is_judged_again_and_one_is_always_left,
        administrators_who_disable_each_other_at_once_leave_one,
        of_set_ups_at_once_one_adds_the_first_user,
        a_store_answers_a_ping,
    }
    audit {
        batches_come_back_in_order,
        a_place_is_taken_once,
        batches_are_found_by_terms_and_time,
        batches_of_one_moment_come_in_their_order,
        a_rare_term_is_found_by_bounded_steps,
        what_was_archived_is_taken_away_behind_its_anchors,
        a_row_behind_no_anchor_is_not_taken_away,
        the_audit_is_tended,
        what_is_committed_is_audited_with_it,
    }
    sessions {
        a_generation_of_keys_is_made_once,
        dead_keys_are_deleted_and_the_youngest_never,
        a_shared_secret_is_made_once,
        a_refresh_token_is_good_once_and_its_reuse_ends_the_session,
        of_rotations_at_once_one_gets_through,
        a_session_ends_in_its_time,
        a_token_that_lay_unused_for_too_long_is_good_no_more,
        used_tokens_are_kept_up_to_a_bound,
        a_user_has_so_many_sessions_and_may_end_them_all,
        a_session_begins_only_while_its_user_is_as_judged,
        a_session_goes_on_only_in_the_generation_of_its_user,
        no_session_outlives_a_change_of_the_password,
        attempts_are_counted_in_windows,
        attempts_at_once_are_all_counted,
    }
    model {
        random_histories_match_the_model,
    }
}
