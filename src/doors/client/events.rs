//! The events of a job: server-sent events, cut out of a body as it comes.

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::Method;

use super::calls::segment;
use super::{Client, ClientError};
use crate::prewarm::wire::JobView;

/// Largest event: a job with many warnings.
const EVENT_LIMIT: usize = 1 << 20;

/// One event of a job: a snapshot, or a sign of life.
pub type JobEvent = Result<Option<JobView>, ClientError>;

// === impl Client ===

impl Client {
    /// `GET /v1/prewarm/{id}/events`: snapshots until the job ends; `None` is a heartbeat.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn events(&self, id: &str) -> Result<BoxStream<'static, JobEvent>, ClientError> {
        let answer = self.send(Method::GET, &format!("/v1/prewarm/{}/events", segment(id)), None, Vec::new()).await?;
        let client = self.clone();
        let state = (answer.into_body(), Vec::new(), client);
        Ok(stream::unfold(Some(state), |state| async move {
            let (mut body, mut buffer, client) = state?;
            loop {
                if let Some(event) = take_event(&mut buffer) {
                    let event = match event {
                        None => Ok(None),
                        Some(json) => match serde_json::from_str(&json) {
                            Ok(view) => Ok(Some(view)),
                            Err(error) => return Some((Err(client.strange(error.to_string())), None)),
                        },
                    };
                    return Some((event, Some((body, buffer, client))));
                }
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Some(bytes) = frame.data_ref() {
                            buffer.extend_from_slice(bytes);
                        }
                        if buffer.len() > EVENT_LIMIT {
                            return Some((Err(client.strange("an event has no end".to_owned())), None));
                        }
                    }
                    Some(Err(error)) => return Some((Err(client.broken(&error)), None)),
                    None => return None,
                }
            }
        })
        .boxed())
    }
}

/// Takes the first whole event off `buffer`: its data, or `None` for a comment.
#[expect(clippy::option_option, reason = "no event yet, a comment, an event")]
fn take_event(buffer: &mut Vec<u8>) -> Option<Option<String>> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let event: Vec<u8> = buffer.drain(..end + 2).collect();
    let text = String::from_utf8_lossy(&event);
    let data: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| data.strip_prefix(' ').unwrap_or(data))
        .collect();
    Some((!data.is_empty()).then(|| data.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_comments_are_told_apart_and_kept_whole() {
        let mut buffer = b": alive\n\nevent: job\ndata: {\"a\":\ndata: 1}\n\ndata: half".to_vec();
        assert_eq!(take_event(&mut buffer), Some(None));
        assert_eq!(take_event(&mut buffer), Some(Some("{\"a\":\n1}".to_owned())));
        assert_eq!(take_event(&mut buffer), None);
        assert_eq!(buffer, b"data: half");
    }
}
