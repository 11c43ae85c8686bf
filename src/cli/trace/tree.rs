//! Draws the hops of a trace as a tree: each hop below the one that caused it, in the order in which they
//! began. Times come from the nodes' clocks, so times of different nodes are comparable only as far as those
//! clocks agree.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Write};

use super::line::{Hop, TraceId};

/// Maximum depth of indentation. Deeper hops are drawn at this depth.
const DEPTH_MAX: usize = 64;

/// Draws `hops`; `left_out` further hops of the trace are only counted.
pub(super) fn draw(trace: TraceId, hops: &[Hop], left_out: usize, out: &mut dyn Write) -> io::Result<()> {
    let rows = rows(hops);
    let nodes: BTreeSet<&str> = hops.iter().map(|hop| hop.node.as_str()).collect();
    let begin = hops.iter().map(Hop::begun_us).min().unwrap_or(0);
    writeln!(out, "trace {trace}: {} on {}", count(hops.len(), "hop"), count(nodes.len(), "node"))?;
    let what_width = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    let node_width = nodes.iter().map(|node| node.chars().count()).max().unwrap_or(0).max(4);
    writeln!(
        out,
        "{:what_width$}  {:node_width$}  {:>10}  {:>9}  {:>9}  outcome",
        "", "node", "at", "queued", "handled"
    )?;
    for row in &rows {
        let hop = row.hop;
        let queued = hop.queue_us.map_or_else(String::new, duration);
        writeln!(
            out,
            "{:what_width$}  {:node_width$}  {:>10}  {queued:>9}  {:>9}  {}",
            row.label,
            hop.node,
            format!("+{}", duration(hop.begun_us() - begin)),
            duration(hop.handle_us),
            hop.outcome
        )?;
    }
    if rows.iter().any(|row| row.orphan) {
        writeln!(out, "* caused by a hop that is not in these logs")?;
    }
    if left_out > 0 {
        writeln!(out, "{} more are not drawn", count(left_out, "hop"))?;
    }
    Ok(())
}

struct Row<'a> {
    label: String,
    hop: &'a Hop,
    orphan: bool,
}

/// Orders the hops for drawing. Every hop appears once, whatever the logs claim about causes.
fn rows(hops: &[Hop]) -> Vec<Row<'_>> {
    let spans: HashSet<u64> = hops.iter().map(|hop| hop.span).collect();
    let mut order: Vec<usize> = (0..hops.len()).collect();
    order.sort_by_key(|at| (hops[*at].begun_us(), hops[*at].ended_us, *at));
    let mut children: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut roots = Vec::new();
    for at in &order {
        let hop = &hops[*at];
        if hop.parent != hop.span && spans.contains(&hop.parent) {
            children.entry(hop.parent).or_default().push(*at);
        } else {
            roots.push(*at);
        }
    }
    let mut rows = Vec::with_capacity(hops.len());
    for root in roots {
        place(hops, &mut children, root, &mut rows);
    }
    // A cycle of causes has no root. Only a faulty program logs one; its hops are still shown.
    for at in order {
        if children.values().any(|waiting| waiting.contains(&at)) {
            children.values_mut().for_each(|waiting| waiting.retain(|other| *other != at));
            place(hops, &mut children, at, &mut rows);
        }
    }
    rows
}

/// Places `root` and all hops that it caused, without recursion, because logs may nest to any depth.
fn place<'a>(hops: &'a [Hop], children: &mut HashMap<u64, Vec<usize>>, root: usize, rows: &mut Vec<Row<'a>>) {
    let mut stack = vec![(root, String::new(), String::new(), 0)];
    while let Some((at, lead, below, depth)) = stack.pop() {
        let hop = &hops[at];
        let orphan = depth == 0 && hop.parent != 0 && !hop.is_edge;
        let mark = if orphan { "* " } else { "" };
        rows.push(Row { label: format!("{lead}{mark}{}", hop.what), hop, orphan });
        let caused = children.remove(&hop.span).unwrap_or_default();
        for (nth, child) in caused.iter().enumerate().rev() {
            let last = nth + 1 == caused.len();
            let (branch, bar) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let deeper = if depth < DEPTH_MAX { format!("{below}{bar}") } else { below.clone() };
            stack.push((*child, format!("{below}{branch}"), deeper, depth + 1));
        }
    }
}

fn duration(us: i64) -> String {
    match us {
        ..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
