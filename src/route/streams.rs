//! The rows of `rule_nats_config` and `rule_nats_streams` judged: which streams each configuration has, and what they take.
//!
//! Comes in: [`Tables`]. Goes out: for each configuration its streams, and what their rows want and do not get. What always
//! holds: no subject is taken by two of them, and a row takes none away from a stream that was there before.

use std::collections::{HashMap, HashSet};

use super::{
    shard, subject,
    tables::{ConfigRow, StreamRow, Tables},
};

/// The streams of a configuration, and what is wrong with its rows.
pub type Streams = (Vec<StreamRow>, Vec<String>);

/// On how many servers that is kept which belongs to all of these streams: as many as any of them is (JetStream takes 1 to 5).
pub fn most_replicas(streams: &[StreamRow]) -> i32 {
    streams.iter().filter_map(|stream| stream.replicas).max().unwrap_or(1).clamp(1, 5)
}

/// The streams of all configurations that publish to JetStream.
pub fn streams_of_all(tables: &Tables) -> HashMap<i32, Streams> {
    let mut all: HashMap<i32, Streams> = HashMap::new();
    let publishing =
        tables.configs.iter().filter(|(_, row)| row.enabled != Some(false) && row.jetstream_enabled != Some(false));
    for (&id, row) in publishing.clone() {
        // Two lanes into one stream would each take the other's last message for its own: what is there goes to the
        // configuration that came first.
        let neighbours: Vec<_> = publishing
            .clone()
            .take_while(|(other, _)| **other < id)
            .filter(|(_, other)| is_same_account(row, other, tables.overridden.as_deref()))
            .filter_map(|(other, other_row)| Some((other_row.config_name.as_str(), all.get(other)?.0.as_slice())))
            .collect();
        let streams = streams_of(id, row, tables, &neighbours);
        all.insert(id, streams);
    }
    if let Some(shard) = &tables.shard {
        for row in all.values_mut().flat_map(|(rows, _)| rows) {
            shard::adapt_stream(row, shard);
        }
    }
    all
}

/// Whether two rows reach a common server as the same user, as far as rows can tell.
fn is_same_account(a: &ConfigRow, b: &ConfigRow, overridden: Option<&str>) -> bool {
    let servers = |row: &ConfigRow| {
        let urls = row.nats_url.iter().chain(&row.nats_cluster_urls);
        let server = |url: &String| {
            let address = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).trim_end_matches('/');
            let (user, host) = address.rsplit_once('@').unwrap_or(("", address));
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            (user.to_owned(), format!("{}{}", host.to_ascii_lowercase(), if has_port { "" } else { ":4222" }))
        };
        urls.map(server).collect::<HashSet<_>>()
    };
    let user = |row: &ConfigRow| {
        let by = row.auth_type.clone().filter(|by| by != "none");
        (by, row.auth_token.clone(), row.auth_credentials_file.clone(), row.auth_nkey_seed.clone())
    };
    let is_as_said = |row: &ConfigRow| overridden != Some(row.config_name.as_str());
    // Another JetStream has other streams.
    let api = |row: &ConfigRow| {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        (given(&row.jetstream_domain), given(&row.api_prefix))
    };
    is_as_said(a) && is_as_said(b) && user(a) == user(b) && api(a) == api(b) && !servers(a).is_disjoint(&servers(b))
}

/// The database keeps microseconds of a stream's time of creation.
const CREATED_TOLERANCE_NS: u64 = 1_000_000;

/// Whether two times of creation, in ns since 1970, are those of one stream.
pub fn is_same_stream(one: i64, other: i64) -> bool {
    one.abs_diff(other) <= CREATED_TOLERANCE_NS
}

/// The streams of a configuration and what was wrong with its rows. They are its rows in `rule_nats_streams`, before
/// them its own stream (`stream_name`, by default WEBHOOKS), which takes `<subject_prefix>.>` where no row has its name;
/// `rule_nats_streams_of` in sql/ says the same.
///
/// JetStream lets one stream only take a subject. So what two of them want stays with the first, and a pattern that is
/// in the way of an earlier one is left out: a row may add a stream, and never take events from another in silence. The
/// same goes for `neighbours`, the streams of earlier configurations of the same server.
fn streams_of(config_id: i32, row: &ConfigRow, tables: &Tables, neighbours: &[(&str, &[StreamRow])]) -> Streams {
    let mut streams = wanted_streams(config_id, row, tables);
    let mut problems = Vec::new();
    let mut complain = |stream: &str, what: &str| {
        problems.push(format!("stream {stream:?} of NATS configuration {:?} {what}", row.config_name));
    };
    streams.retain(|stream| is_possible(stream, neighbours, &mut complain));
    for index in 0..streams.len() {
        let (earlier, rest) = streams.split_at_mut(index);
        let there = neighbours.iter().flat_map(|(_, rows)| rows.iter());
        keep_free_subjects(&mut rest[0], earlier.iter().chain(there), &mut complain);
    }
    streams.retain(|stream| !stream.subjects.is_empty());
    (streams, problems)
}

/// The streams that the rows of a configuration want, its own one first, and none that is disabled.
fn wanted_streams(config_id: i32, row: &ConfigRow, tables: &Tables) -> Vec<StreamRow> {
    let default_config = row.config_name == "default";
    let mut streams: Vec<_> = tables
        .streams
        .values()
        .filter(|stream| stream.config_id == Some(config_id) || (stream.config_id.is_none() && default_config))
        .map(|stream| StreamRow::clone(stream))
        .collect();
    if let Some(name) = row.stream_name.as_deref().filter(|name| !name.is_empty()) {
        // A row that is disabled still speaks for it: then there is no such stream.
        if !streams.iter().any(|stream| stream.stream_name == name) {
            let prefix = row.subject_prefix.as_deref().filter(|prefix| !prefix.is_empty()).unwrap_or("webhooks");
            streams.push(StreamRow {
                config_id: Some(config_id),
                stream_name: name.to_owned(),
                subjects: vec![format!("{prefix}.>")],
                enabled: Some(true),
                ..StreamRow::default()
            });
        }
        streams.sort_by_key(|stream| stream.stream_name != name);
    }
    streams.retain(|stream| stream.enabled != Some(false));
    streams
}

/// Whether there can be such a stream: its name is one, and no other configuration publishes to it.
fn is_possible(stream: &StreamRow, neighbours: &[(&str, &[StreamRow])], complain: &mut impl FnMut(&str, &str)) -> bool {
    let name = &stream.stream_name;
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    let named = !name.is_empty() && name.len() <= 255 && !name.contains(bad);
    if !named {
        complain(name, "is set aside: a stream's name has 1 to 255 bytes, without spaces and without . * > / \\");
    } else if stream.subjects.is_empty() {
        complain(name, "is set aside: it has no subjects");
    }
    let neighbour = neighbours.iter().find(|(_, rows)| rows.iter().any(|other| other.stream_name == *name));
    if let Some((other, _)) = neighbour {
        complain(
            name,
            &format!(
                "is set aside: NATS configuration {other:?} publishes to it, on the same server; give one of them another \
                 stream_name and subject_prefix, or use one configuration for both"
            ),
        );
    }
    named && neighbour.is_none()
}

/// Leaves the stream only those subjects that none of the `others` takes.
fn keep_free_subjects<'s>(
    stream: &mut StreamRow,
    others: impl Iterator<Item = &'s StreamRow> + Clone,
    complain: &mut impl FnMut(&str, &str),
) {
    let mut kept: Vec<String> = Vec::new();
    for pattern in std::mem::take(&mut stream.subjects) {
        if let Some(why) = subject::invalid_pattern(&pattern) {
            complain(&stream.stream_name, &format!("does not take {pattern:?}: {why}"));
            continue;
        }
        // Subjects of one row may overlap: the wider of two takes what the narrower would.
        if kept.iter().any(|other| subject::covers(other, &pattern)) {
            continue;
        }
        kept.retain(|other| !subject::covers(&pattern, other));
        let theirs = others.clone().flat_map(|other| other.subjects.iter().map(move |taken| (other, taken)));
        let mine = kept.iter().map(|taken| (&*stream, taken));
        match theirs.chain(mine).find(|(_, taken)| subject::overlaps(taken, &pattern)) {
            None => kept.push(pattern),
            Some((other, taken)) => complain(
                &stream.stream_name,
                &format!(
                    "does not take {pattern:?}: {taken:?} goes to stream {:?}, and a subject to one stream only; narrow one of \
                     the two (rule_nats_streams.subjects)",
                    other.stream_name
                ),
            ),
        }
    }
    stream.subjects = kept;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tables() -> Tables {
        let mut tables = Tables::default();
        let config = ConfigRow {
            config_id: 1,
            config_name: "default".to_owned(),
            stream_name: Some("WEBHOOKS".to_owned()),
            subject_prefix: Some("webhooks".to_owned()),
            ..Default::default()
        };
        tables.configs.insert(1, config);
        tables
    }

    /// The streams of configuration 1 with these rows, in their order of ids: `NAME pattern pattern, …`, and how many
    /// problems there are.
    fn streams(rows: &[(&str, &str)], spoil: fn(&mut Tables)) -> (String, usize) {
        let mut tables = tables();
        for (id, (name, patterns)) in (1..).zip(rows) {
            let row = StreamRow {
                config_id: Some(1),
                stream_name: (*name).to_owned(),
                subjects: patterns.split(' ').map(str::to_owned).collect(),
                ..Default::default()
            };
            tables.streams.insert(id, row);
        }
        spoil(&mut tables);
        let (streams, problems) = streams_of_all(&tables).remove(&1).unwrap();
        let streams: Vec<_> =
            streams.iter().map(|stream| format!("{} {}", stream.stream_name, stream.subjects.join(" "))).collect();
        (streams.join(", "), problems.len())
    }

    #[test]
    fn no_row_takes_subjects_from_the_configurations_own_stream_or_from_an_earlier_row() {
        let check = |rows: &[(&str, &str)], expected: &str, problems: usize| {
            assert_eq!(streams(rows, |_| ()), (expected.to_owned(), problems), "{rows:?}");
        };
        check(&[], "WEBHOOKS webhooks.>", 0);
        check(&[("A", "events.>")], "WEBHOOKS webhooks.>, A events.>", 0);
        check(&[("A", "webhooks.orders.delete")], "WEBHOOKS webhooks.>", 1);
        check(&[("A", "webhooks.orders.delete audit.>")], "WEBHOOKS webhooks.>, A audit.>", 1);
        check(&[("A", "webhooks.>")], "WEBHOOKS webhooks.>", 1);
        check(&[("A", "webhooks.a"), ("WEBHOOKS", "webhooks.*")], "WEBHOOKS webhooks.*", 1);
        check(&[("A", "webhooks.a.b"), ("WEBHOOKS", "webhooks.*")], "WEBHOOKS webhooks.*, A webhooks.a.b", 0);
        check(&[("A", "x.>"), ("B", "x.y z")], "WEBHOOKS webhooks.>, A x.>, B z", 1);
        check(&[("A", "x.y x.> x.z")], "WEBHOOKS webhooks.>, A x.>", 0);
        check(&[("A", "x.*.z x.y.*")], "WEBHOOKS webhooks.>, A x.*.z", 1);
        check(&[("A", "x y.* a..b $JS.x > u*")], "WEBHOOKS webhooks.>, A x y.*", 4);
        check(&[("A B", "x")], "WEBHOOKS webhooks.>", 1);
    }

    #[test]
    fn the_configurations_own_stream_is_as_its_columns_and_its_row_say() {
        let config = |spoil| streams(&[("A", "webhooks.a")], spoil).0;
        assert_eq!(config(|t| t.configs.get_mut(&1).unwrap().stream_name = Some("A".to_owned())), "A webhooks.a");
        assert_eq!(config(|t| t.configs.get_mut(&1).unwrap().stream_name = None), "A webhooks.a");
        assert_eq!(
            config(|t| t.configs.get_mut(&1).unwrap().subject_prefix = Some("own".to_owned())),
            "WEBHOOKS own.>, A webhooks.a"
        );
        let disabled = |t: &mut Tables| {
            t.streams.get_mut(&1).unwrap().enabled = Some(false);
            t.streams.get_mut(&1).unwrap().stream_name = "WEBHOOKS".to_owned();
        };
        assert_eq!(config(disabled), "");
        // A row without a configuration is the default's.
        assert_eq!(
            streams(&[("A", "x")], |t| t.streams.get_mut(&1).unwrap().config_id = None).0,
            "WEBHOOKS webhooks.>, A x"
        );
    }

    #[test]
    fn a_second_configuration_of_a_server_gets_what_the_first_leaves() {
        let check = |spoil: fn(&mut Tables), expected: &[&str]| {
            let mut tables = tables();
            let first = tables.configs.get_mut(&1).unwrap();
            first.nats_url = Some("nats://there".to_owned());
            let mut second = first.clone();
            second.config_id = 2;
            second.config_name = "second".to_owned();
            second.nats_url = Some("tls://There:4222/".to_owned());
            tables.configs.insert(2, second);
            spoil(&mut tables);
            let (streams, problems) = streams_of_all(&tables).remove(&2).unwrap_or_default();
            let names: Vec<_> = streams.iter().map(|stream| stream.stream_name.as_str()).collect();
            assert_eq!(names, expected);
            assert_eq!(problems.is_empty(), !expected.is_empty(), "{problems:?}");
        };
        fn second(tables: &mut Tables) -> &mut ConfigRow {
            tables.configs.get_mut(&2).unwrap()
        }
        check(|_| (), &[]);
        check(|t| second(t).stream_name = Some("OTHER".to_owned()), &[]);
        check(|t| second(t).subject_prefix = Some("other".to_owned()), &[]);
        let other = |t: &mut Tables| {
            second(t).subject_prefix = Some("other".to_owned());
            second(t).stream_name = Some("OTHER".to_owned());
        };
        check(other, &["OTHER"]);
        for elsewhere in [
            |t: &mut Tables| second(t).nats_url = Some("nats://there:4223".to_owned()),
            |t: &mut Tables| second(t).auth_token = Some("another".to_owned()),
            |t: &mut Tables| second(t).nats_url = Some("nats://me:pw@there".to_owned()),
            |t: &mut Tables| t.configs.get_mut(&1).unwrap().enabled = Some(false),
            |t: &mut Tables| t.overridden = Some("default".to_owned()),
        ] {
            check(elsewhere, &["WEBHOOKS"]);
        }
    }

    #[test]
    fn patterns_overlap_when_a_subject_fits_both() {
        let check = |a: &str, b: &str, expected: bool| {
            assert_eq!((subject::overlaps(a, b), subject::overlaps(b, a)), (expected, expected), "{a} {b}");
        };
        check("webhooks.*", "webhooks.>", true);
        check("a.*.c", "a.b.*", true);
        check("a.b", "a.c", false);
        check("a.*", "a.b.c", false);
        check(">", "x", true);
        check("a", "a.>", false);
    }

    #[test]
    fn a_pattern_covers_another_when_it_takes_all_that_the_other_takes() {
        for (wide, narrow, expected) in [
            ("a.>", "a.b.c", true),
            ("a.>", "a.>", true),
            ("a.>", "a", false),
            ("a.*", "a.>", false),
            ("*.>", "a.>", true),
            (">", "a.>", true),
            ("a.*", "a.*", true),
            ("a.b", "a.*", false),
            ("a.*.c", "a.b.*", false),
        ] {
            assert_eq!(subject::covers(wide, narrow), expected, "{wide} {narrow}");
        }
    }
}
