//! Downloads files from the hub into the cache.
//!
//! The token is sent only to the hub, not to a host that the hub redirects to. An interrupted download is resumed. A
//! file gets its name in the cache only if it is complete: it must have the length that the hub reports, and the hash
//! that the hub reported first.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::{Cache, Repo};
use indicatif::{ProgressBar, ProgressStyle};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::Hub;
use super::checksum::verify;
use super::retry::Failure;

/// Redirects that are followed, at most.
const REDIRECTS: usize = 8;

/// The timeout for a connection. If the hub does not answer in this time, a model in the cache is used without it.
const CONNECT: Duration = Duration::from_secs(20);

/// The timeout for the next bytes on a connection. A connection that the other end has dropped silently would otherwise
/// never be closed.
const SILENCE: Duration = Duration::from_secs(60);

const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// What fetches from a hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    cache: Cache,
}

/// A response, and the hub's own description of the file's content. This is the first one on the way to the response,
/// because a redirect may lead to another file.
struct Answer {
    etag: Option<String>,
    /// The commit that it says this of.
    commit: Option<String>,
    /// Whether it says this at the address that was asked for, and not where that redirects to.
    is_first: bool,
    response: Response<Body>,
}

impl Client {
    pub(super) fn new(hub: &Hub) -> Self {
        // Each redirect is looked at before it is followed.
        let config = Agent::config_builder()
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE));
        Self {
            agent: config.user_agent(USER_AGENT).build().into(),
            endpoint: hub.endpoint.clone(),
            token: hub.token.clone(),
            cache: Cache::new(hub.cache.clone()),
        }
    }

    /// What there is of `repo` at its revision.
    pub(super) fn info(&self, repo: &Repo) -> Result<RepoInfo, Failure> {
        let url = format!("{}/api/{}", self.endpoint, repo.api_url());
        let body = self.ask(&url, None)?.response.into_body();
        let info: RepoInfo =
            serde_json::from_reader(body.into_reader()).map_err(|error| Failure {
                passes: !error.is_data(),
                reason: error.to_string(),
            })?;
        if !is_name(&info.sha) {
            return Err(format!("{:?} is no revision", info.sha).into());
        }
        Ok(info)
    }

    /// A file of `repo`, whose revision is a commit, in the cache, where it is fetched to if it is not
    /// there.
    pub(super) fn get(&self, repo: &Repo, file: &str) -> Result<PathBuf, Failure> {
        let place = self.cache.repo(repo.clone());
        let place = place.pointer_path(repo.revision()).join(file);
        if place.exists() {
            return Ok(place);
        }
        self.fetch(repo, file, &place)
            .map_err(|failure| failure.named(file))
    }

    fn fetch(&self, repo: &Repo, file: &str, place: &Path) -> Result<PathBuf, Failure> {
        let is_inside = |part: Component| matches!(part, Component::Normal(_));
        if !file.is_ascii() || !Path::new(file).components().all(is_inside) {
            return Err("only names in ASCII, of files within the model, can be fetched".into());
        }
        let (endpoint, revision) = (&self.endpoint, repo.url_revision());
        let url = format!("{endpoint}/{}/resolve/{revision}/{file}", repo.url());
        let answer = self.ask(&url, Some("bytes=0-0"))?;
        let size = size(&answer.response).ok_or("the hub does not send its size")?;
        let etag = answer.etag.filter(|etag| is_name(etag));
        let etag = etag.ok_or("the hub does not send its ETag")?;
        match answer.commit {
            Some(commit) if commit != repo.revision() => {
                return Err("the hub redirects to another repository or revision".into());
            }
            // What another page says counts only for this commit.
            None if !answer.is_first => {
                return Err(
                    "the hub redirects to a page that does not say its revision (X-Repo-Commit)"
                        .into(),
                );
            }
            _ => {}
        }

        let blob = self.cache.repo(repo.clone()).blob_path(&etag);
        let beside = |extension: &str| blob.with_file_name(format!("{etag}.{extension}"));
        let said = |error: io::Error| error.to_string();
        fs::create_dir_all(blob.parent().unwrap_or(&blob)).map_err(said)?;
        // A process that is fetching the same file holds the lock until the file is there.
        let lock = File::create(beside("lock")).map_err(said)?;
        let is_alone = is_locked(|| lock.lock());
        if !blob.exists() {
            let part = if is_alone {
                beside("part")
            } else {
                beside(&format!("{}.part", std::process::id()))
            };
            let whole = self
                .download(&url, &part, size, file)
                .and_then(|()| verify(&part, &etag).map_err(Failure::from))
                .and_then(|()| Ok(fs::rename(&part, &blob).map_err(said)?));
            if whole.is_err() && !is_alone {
                // No other process will look for it.
                let _ = fs::remove_file(&part);
            }
            whole?;
        }
        link(&blob, place, file).map_err(said)?;
        Ok(place.into())
    }

    /// Makes `part` whole: fetches what is missing at its end.
    fn download(&self, url: &str, part: &Path, size: u64, name: &str) -> Result<(), Failure> {
        let said = |error: io::Error| error.to_string();
        // More than all of it is something else.
        let there = fs::metadata(part).map_or(0, |part| part.len());
        let there = if there > size { 0 } else { there };
        if there == size {
            return Ok(());
        }
        let response = self.ask(url, Some(&format!("bytes={there}-")))?.response;
        let goes_on = there > 0 && response.status() == StatusCode::PARTIAL_CONTENT;
        let there = if goes_on { there } else { 0 };
        let mut file = File::options();
        file.create(true).write(true);
        file.append(goes_on).truncate(!goes_on);
        let mut file = file.open(part).map_err(said)?;
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
        let style = ProgressStyle::with_template(template);
        let bar = ProgressBar::new(size)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(name.to_owned())
            .with_position(there);
        bar.reset_eta();
        let rest = response.into_body().into_reader().take(size - there);
        let came = copy(&mut bar.wrap_read(rest), &mut file);
        bar.abandon();
        let whole = there + came?;
        if whole == size {
            Ok(())
        } else {
            let reason = format!("it broke off after {whole} of {size} bytes");
            Err(Failure::passing(reason))
        }
    }

    /// Asks for a page, or for some bytes of it, wherever it has moved to.
    fn ask(&self, url: &str, range: Option<&str>) -> Result<Answer, Failure> {
        let mut url = url.to_owned();
        let token = self.token.as_deref().unwrap_or_default();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token (HF_TOKEN) holds characters that no token has".into());
        }
        let (mut etag, mut commit, mut is_first) = (None, None, false);
        for redirects in 0..=REDIRECTS {
            let is_hub = origin(&url) == origin(&self.endpoint);
            // Without compression: a range of compressed bytes would be another part of the file.
            let mut request = self.agent.get(&url).header("Accept-Encoding", "identity");
            if let Some(range) = range {
                request = request.header("Range", range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| Failure::of(&error))?;
            let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
            let is_redirection = response.status().is_redirection();
            if is_hub && etag.is_none() {
                // That of a redirection itself says nothing of the file.
                let own = header("ETag").filter(|_| !is_redirection);
                let own = header("X-Linked-Etag").or(own);
                etag = own.map(|etag| etag.trim_start_matches("W/").replace('"', ""));
                commit = header("X-Repo-Commit");
                is_first = redirects == 0;
            }
            if !is_redirection {
                return Ok(Answer {
                    etag,
                    commit,
                    is_first,
                    response,
                });
            }
            let location = header("Location").unwrap_or_default();
            url = if location.starts_with('/') {
                format!("{}{location}", origin(&url))
            } else {
                location
            };
        }
        Err(format!("more than {REDIRECTS} redirects").into())
    }
}

/// Copies a response into a file, and returns its length. A broken connection is a failure that may pass, and is tried
/// again; a full disk is not.
fn copy(from: &mut impl Read, file: &mut File) -> Result<u64, Failure> {
    let mut bytes = vec![0; 1 << 18];
    let mut length = 0;
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(length),
            Ok(read) => {
                let written = file.write_all(&bytes[..read]);
                written.map_err(|error| error.to_string())?;
                length += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::passing(error)),
        }
    }
}

/// The beginning of an address, up to its path: `https://huggingface.co`.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |scheme| scheme + 3);
    let length = url[host..].find(['/', '?', '#']);
    &url[..length.map_or(url.len(), |length| host + length)]
}

/// Bytes of the whole file, of which a response may have some.
fn size(response: &Response<Body>) -> Option<u64> {
    match response.headers().get("Content-Range") {
        Some(range) => range.to_str().ok()?.rsplit('/').next()?.parse().ok(),
        None => response.body().content_length(),
    }
}

/// Whether a hub's or a cache's text can be a file's name.
pub(super) fn is_name(text: &str) -> bool {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(usual)
}

/// Whether the lock was acquired. Some network file systems have no locks; there, nothing prevents two processes from
/// working on the same file.
fn is_locked(mut lock: impl FnMut() -> io::Result<()>) -> bool {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.is_ok(),
        }
    }
}

/// Shows `blob` as `file` of its snapshot.
fn link(blob: &Path, place: &Path, file: &str) -> io::Result<()> {
    fs::create_dir_all(place.parent().unwrap_or(place))?;
    // A link whose blob was removed.
    if fs::symlink_metadata(place).is_ok() {
        fs::remove_file(place)?;
    }
    #[cfg(unix)]
    {
        // Out of the file's folders, its revision's and that of all revisions.
        let mut relative: PathBuf = Path::new(file).components().map(|_| "..").collect();
        relative.push("../blobs");
        relative.push(blob.file_name().unwrap_or_default());
        std::os::unix::fs::symlink(relative, place)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        fs::rename(blob, place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_locks() {
        // ENOSYS and ENOLCK of Linux.
        for code in [38, 37] {
            assert!(!is_locked(|| Err(io::Error::from_raw_os_error(code))));
        }
        let mut answers = [Err(io::ErrorKind::Interrupted.into()), Ok(())].into_iter();
        assert!(is_locked(|| answers.next().unwrap()));
    }
}
