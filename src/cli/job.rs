//! A job in words.

use super::screen::Screen;
use super::words;
use crate::base::units::{ByteRate, ByteSize};
use crate::prewarm::wire::{JobState, JobView, MemberView, Priority, Tier};

/// Where it stands, in a few words.
pub(super) fn state(job: &JobView) -> String {
    let mut text = match job.state {
        JobState::Queued => "queued".to_owned(),
        JobState::Running => job.stage.replace('_', " "),
        JobState::Ready => format!("ready in {}", words::seconds(job.seconds)),
        JobState::Failed => format!("failed after {}", words::seconds(job.seconds)),
        JobState::Cancelled => format!("cancelled after {}", words::seconds(job.seconds)),
        JobState::NeedsCredentials => "waits for a credential: ask for it again with one".to_owned(),
    };
    let over = job.state.is_over();
    match job.deadline_met {
        Some(true) if over => text.push_str(", within the deadline"),
        Some(false) if over => text.push_str(", past the deadline"),
        _ => {}
    }
    text
}

/// How far it is, how fast it goes, when it ends: of one that runs or waits.
pub(super) fn progress(job: &JobView) -> String {
    let mut parts = Vec::new();
    if job.bytes_total > 0 {
        let percent = (job.bytes_done as f64 * 100.0 / job.bytes_total as f64).floor();
        parts.push(format!("{} of {} ({percent:.0} %)", ByteSize(job.bytes_done), ByteSize(job.bytes_total)));
    }
    if job.bytes_per_second > 0 {
        parts.push(ByteRate(job.bytes_per_second).to_string());
    }
    if let Some(eta) = job.eta_seconds {
        parts.push(format!("{} left (nine times in ten {})", words::seconds(eta.p50), words::seconds(eta.p90)));
    }
    match job.deadline_met {
        Some(true) => parts.push("the deadline will hold".to_owned()),
        Some(false) => parts.push("the deadline may be missed".to_owned()),
        None => {}
    }
    parts.join(", ")
}

/// The whole of it in one line: what `prewarm` prints.
pub(super) fn sentence(job: &JobView) -> String {
    let mut text = format!("{}: {}", job.id, state(job));
    match job.state {
        JobState::Ready => {
            let paths: Vec<String> = paths(job).map(|path| path.display().to_string()).collect();
            text.push_str(&format!(", {} at {}", ByteSize(job.bytes_total), paths.join(", ")));
        }
        JobState::Queued | JobState::Running => {
            if let Some(estimate) = &job.estimate {
                text.push_str(&format!("; {}", words::estimate(estimate, job.tier)));
            } else if job.bytes_total > 0 {
                text.push_str(&format!(", {} of {}", ByteSize(job.bytes_done), ByteSize(job.bytes_total)));
            }
            if let Some(verdict) = job.estimate.as_ref().and_then(|estimate| estimate.deadline) {
                text.push_str(&format!("; {}", words::verdict(verdict)));
            }
        }
        JobState::Failed | JobState::Cancelled | JobState::NeedsCredentials => {}
    }
    text
}

fn paths(job: &JobView) -> impl Iterator<Item = &std::path::PathBuf> {
    let members = job.members.iter().filter_map(|member| member.path.as_ref());
    // A daemon that tells of no members tells of its one model above.
    members.chain(job.path.as_ref().filter(|_| job.members.is_empty()))
}

/// What it is about: the first reference, and how many more.
pub(super) fn about(job: &JobView) -> String {
    let tier = match job.tier {
        Tier::Disk => "",
        Tier::Memory => ", into memory",
    };
    match job.members.as_slice() {
        [first, _, ..] => format!("{} and {} more{tier}", first.reference, job.members.len() - 1),
        _ => format!("{}{tier}", job.reference),
    }
}

/// Everything about it, a line each.
pub(super) fn lines(job: &JobView, screen: &Screen) -> Vec<String> {
    let priority = match job.priority {
        Priority::Demand => "demand",
        Priority::Prefetch => "prefetch",
    };
    let mut lines = vec![
        format!("{}: {}", job.id, state(job)),
        format!("  tier {}, priority {priority}, asked {} ago", words::tier(job.tier), words::seconds(job.seconds)),
    ];
    if job.state.is_over() {
        lines[1] = format!("  tier {}, priority {priority}", words::tier(job.tier));
    } else {
        let progress = progress(job);
        if !progress.is_empty() {
            lines.push(format!("  {progress}"));
        }
    }
    if let Some(estimate) = &job.estimate {
        let verdict = estimate.deadline.map(|verdict| format!("; {}", words::verdict(verdict))).unwrap_or_default();
        lines.push(format!("  first estimate: {}{verdict}", words::estimate(estimate, job.tier)));
    }
    for member in &job.members {
        lines.push(format!("  {}", member.reference));
        lines.push(format!("    {}", standing(member)));
        if let Some(revision) = &member.revision {
            lines.push(format!("    revision {revision}"));
        }
        if let Some(path) = &member.path {
            lines.push(format!("    {}", path.display()));
        }
    }
    if let Some(problem) = &job.error {
        lines.push(format!("  {}", problem.detail));
    }
    lines.extend(job.warnings.iter().map(|warning| format!("  warning: {warning}")));
    lines.iter().map(|line| screen.plain(line).into_owned()).collect()
}

fn standing(member: &MemberView) -> String {
    let mut parts = vec![member.stage.replace('_', " ")];
    if member.bytes_total > 0 {
        parts.push(if member.bytes_done == member.bytes_total {
            ByteSize(member.bytes_total).to_string()
        } else {
            format!("{} of {}", ByteSize(member.bytes_done), ByteSize(member.bytes_total))
        });
        parts.push(format!("{} from the origin", ByteSize(member.origin_bytes)));
    }
    if member.files > 0 {
        parts.push(format!("{} files", member.files));
    }
    if member.path.is_some() {
        parts.push(if member.durable { "durable" } else { "not yet durable" }.to_owned());
    }
    if let Some(resident) = member.resident_bytes {
        parts.push(format!("{} in memory", ByteSize(resident)));
    }
    parts.join(", ")
}
