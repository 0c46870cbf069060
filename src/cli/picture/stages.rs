//! The stages of a job as a chart: a row for each stage of each model, in the order in which they began.

use std::collections::BTreeMap;

use super::super::words;
use super::{Bar, Chart, Row, Tone};
use crate::base::units::ByteSize;
use crate::prewarm::wire::{JobView, StageView};

/// Stages in the order in which a model goes through them; for those that began at once.
const ORDER: [&str; 8] = ["queue", "resolve", "first_byte", "transfer", "verify", "publish", "seal", "warm"];

/// The chart of a job. `state` is what to say of it in words.
pub(in super::super) fn of(job: &JobView, state: &str) -> Chart {
    let end = |stage: &StageView| stage.start + stage.seconds.unwrap_or_else(|| (job.seconds - stage.start).max(0.0));
    // Sealing goes on after the answer.
    let seconds = job.timeline.iter().map(end).fold(job.seconds, f64::max);
    let mut of_member: BTreeMap<Option<usize>, Vec<&StageView>> = BTreeMap::new();
    for stage in &job.timeline {
        of_member.entry(stage.member).or_default().push(stage);
    }
    let several = job.members.len() > 1;
    let mut rows = Vec::new();
    for (member, mut stages) in of_member {
        if let Some(number) = member.filter(|_| several) {
            let reference = job.members.get(number).map(|member| member.reference.as_str());
            rows.push(Row::Heading(reference.unwrap_or("a model that is not told of").to_owned()));
        }
        stages.sort_by(|one, other| {
            one.start.total_cmp(&other.start).then_with(|| place(&one.stage).cmp(&place(&other.stage)))
        });
        let mut seen: Vec<&str> = Vec::new();
        for stage in &stages {
            if seen.contains(&stage.stage.as_str()) {
                continue;
            }
            seen.push(&stage.stage);
            let same: Vec<&&StageView> = stages.iter().filter(|other| other.stage == stage.stage).collect();
            let bars = same.iter().map(|stage| Bar {
                start: stage.start,
                end: end(stage),
                open: stage.seconds.is_none(),
                tone: tone(&stage.stage),
            });
            let indent = if several && member.is_some() { "  " } else { "" };
            rows.push(Row::Bars {
                label: format!("{indent}{}", stage.stage.replace('_', " ")),
                bars: bars.collect(),
                note: words::seconds(same.iter().map(|stage| end(stage) - stage.start).sum()),
            });
        }
    }
    let what = match job.members.len() {
        0 | 1 => job.reference.clone(),
        more => format!("{} and {} more", job.members[0].reference, more - 1),
    };
    let size = format!("{}, {} from the origin", ByteSize(job.bytes_total), ByteSize(job.origin_bytes));
    Chart { title: what, subtitles: vec![format!("{}: {state}", job.id), size], rows, seconds }
}

fn place(stage: &str) -> usize {
    ORDER.iter().position(|known| *known == stage).unwrap_or(ORDER.len())
}

fn tone(stage: &str) -> Tone {
    match stage {
        "queue" => Tone::Wait,
        "resolve" => Tone::Ask,
        "first_byte" => Tone::FirstByte,
        "transfer" => Tone::Transfer,
        "verify" => Tone::Verify,
        "publish" | "seal" => Tone::Keep,
        "warm" => Tone::Warm,
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::screen::Screen;
    use super::super::{svg, text};
    use super::*;
    use crate::prewarm::wire::{JobState, MemberView};

    fn stage(stage: &str, member: Option<usize>, start: f64, seconds: Option<f64>) -> StageView {
        StageView { stage: stage.to_owned(), member, start, seconds }
    }

    fn one(timeline: Vec<StageView>) -> JobView {
        JobView {
            id: "job-1".to_owned(),
            state: JobState::Ready,
            reference: "s3://models/llama-3-8b".to_owned(),
            bytes_total: 15 << 30,
            origin_bytes: 15 << 30,
            seconds: 12.4,
            members: vec![MemberView { reference: "s3://models/llama-3-8b".to_owned(), ..MemberView::default() }],
            timeline,
            ..JobView::default()
        }
    }

    fn set() -> JobView {
        let base = MemberView { reference: "hf://org/base".to_owned(), ..MemberView::default() };
        let adapter = MemberView { reference: "s3://adapters/<b>&\"c\"".to_owned(), ..MemberView::default() };
        JobView {
            state: JobState::Running,
            seconds: 20.0,
            members: vec![base, adapter],
            ..one(vec![
                stage("queue", None, 0.0, Some(0.004)),
                stage("resolve", Some(0), 0.004, Some(0.3)),
                stage("first_byte", Some(0), 0.31, Some(0.12)),
                stage("transfer", Some(0), 0.43, Some(9.0)),
                stage("verify", Some(0), 9.43, Some(0.02)),
                stage("resolve", Some(1), 0.004, Some(1.0)),
                stage("resolve", Some(1), 4.0, None),
            ])
        }
    }

    #[test]
    fn one_model_has_a_row_for_each_stage() {
        let job = one(vec![
            stage("queue", None, 0.0, Some(0.0)),
            stage("resolve", Some(0), 0.0, Some(0.4)),
            stage("first_byte", Some(0), 0.4, Some(0.15)),
            stage("publish", Some(0), 9.6, Some(0.01)),
            stage("transfer", Some(0), 0.55, Some(9.0)),
            stage("verify", Some(0), 9.55, Some(0.05)),
            stage("warm", Some(0), 9.61, Some(2.79)),
            stage("seal", Some(0), 12.4, Some(1.6)),
        ]);
        let chart = of(&job, "ready in 12.4 s");
        assert_eq!(chart.seconds, 14.0, "sealing goes on after the answer");
        let screen = Screen { columns: 72, unicode: true, colour: false };
        insta::assert_snapshot!(text::draw(&chart, &screen), @r"
                   0 s                5 s                 10 s
                   ┬──────────────────┬───────────────────┬──────────────
        queue      ▏                                                        0 ms
        resolve    ██                                                     400 ms
        first byte   ▏                                                    150 ms
        transfer     ███████████████████████████████████                   9.0 s
        verify                                          ▏                  50 ms
        publish                                         ▏                  10 ms
        warm                                            ███████████        2.8 s
        seal                                                       ██████  1.6 s
        ");
    }

    #[test]
    fn a_set_has_its_models_one_below_the_other() {
        let chart = of(&set(), "running");
        let screen = Screen { columns: 72, unicode: false, colour: false };
        insta::assert_snapshot!(text::draw(&chart, &screen), @r#"
                     0 s          5 s          10 s         15 s
                     +------------+------------+------------+------------
        queue        |                                                      4 ms
        hf://org/base
          resolve    #                                                    300 ms
          first byte  |                                                   120 ms
          transfer    ########################                             9.0 s
          verify                              |                            20 ms
        s3://adapters/<b>&"c"
          resolve    ###       #########################################> 17.0 s
        "#);
    }

    #[test]
    fn the_same_as_svg() {
        insta::assert_snapshot!("set.svg", svg::draw(&of(&set(), "running")));
    }

    #[test]
    fn a_job_that_has_done_nothing_yet_is_an_empty_chart() {
        let chart = of(&JobView { seconds: 0.0, ..one(Vec::new()) }, "queued");
        assert!(chart.rows.is_empty());
        assert_eq!(text::draw(&chart, &Screen { columns: 40, unicode: false, colour: false }).lines().count(), 2);
        assert!(svg::draw(&chart).ends_with("</svg>\n"));
    }
}
