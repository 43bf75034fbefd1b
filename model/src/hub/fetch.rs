//! A file's way from the hub into the cache.
//!
//! The token is sent to the hub alone, and not to the host that it redirects to. A download that broke off
//! is resumed, and a file gets its name in the cache only when it is known to be whole: of the length that the hub
//! says, and of the hash that it first said.
//!
//! A hub that is overloaded, and a connection that breaks off while a file is fetched, are tried again for half a minute.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::{Cache, Repo};
use indicatif::{ProgressBar, ProgressStyle};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::Hub;

/// Redirects that are followed, at most.
const REDIRECTS: usize = 8;

/// How long a connection may take. A model in the cache is used without a hub that does not answer.
const CONNECT: Duration = Duration::from_secs(20);

/// Seconds between two tries.
const PAUSES: [u64; 5] = [1, 2, 4, 8, 16];

const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// What fetches from a hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    cache: Cache,
}

/// A response, and what the hub itself calls the file's content: the first that it says on the way to the
/// response, since a redirect may lead to another file.
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
            .timeout_connect(Some(CONNECT));
        Self {
            agent: config.user_agent(USER_AGENT).build().into(),
            endpoint: hub.endpoint.clone(),
            token: hub.token.clone(),
            cache: Cache::new(hub.cache.clone()),
        }
    }

    /// What there is of `repo` at its revision.
    pub(super) fn info(&self, repo: &Repo) -> Result<RepoInfo, String> {
        let url = format!("{}/api/{}", self.endpoint, repo.api_url());
        let body = self.ask(&url, None)?.response.into_body();
        let info: RepoInfo =
            serde_json::from_reader(body.into_reader()).map_err(|error| error.to_string())?;
        if !is_name(&info.sha) {
            return Err(format!("{:?} is no revision", info.sha));
        }
        Ok(info)
    }

    /// A file of `repo`, whose revision is a commit, in the cache, where it is fetched to if it is not
    /// there.
    pub(super) fn get(&self, repo: &Repo, file: &str) -> Result<PathBuf, String> {
        let named = |reason: String| format!("{file}: {reason}");
        let place = self.cache.repo(repo.clone());
        let place = place.pointer_path(repo.revision()).join(file);
        if place.exists() {
            return Ok(place);
        }
        self.fetch(repo, file, &place).map_err(named)
    }

    fn fetch(&self, repo: &Repo, file: &str, place: &Path) -> Result<PathBuf, String> {
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
                .and_then(|()| verify(&part, &etag))
                .and_then(|()| fs::rename(&part, &blob).map_err(said));
            if whole.is_err() && !is_alone {
                // No other process will look for it.
                let _ = fs::remove_file(&part);
            }
            whole?;
        }
        link(&blob, place, file).map_err(said)?;
        Ok(place.into())
    }

    /// Makes `part` whole: fetches what is missing at its end, and again what is missing then if that breaks off.
    fn download(&self, url: &str, part: &Path, size: u64, name: &str) -> Result<(), String> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let there = || fs::metadata(part).map_or(0, |part| part.len());
            let before = there();
            let error = match self.download_rest(url, part, size, name) {
                Err(error) if there() != before && there() < size => error,
                result => return result,
            };
            match pauses.next() {
                Some(seconds) => wait(name, &error, seconds),
                None => return Err(error),
            }
        }
    }

    /// See [`download`](Self::download).
    fn download_rest(&self, url: &str, part: &Path, size: u64, name: &str) -> Result<(), String> {
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
        let came = io::copy(&mut bar.wrap_read(rest), &mut file);
        bar.abandon();
        match there + came.map_err(said)? {
            whole if whole == size => Ok(()),
            whole => Err(format!("it broke off after {whole} of {size} bytes")),
        }
    }

    /// Asks for a page, or for some bytes of it, wherever it has moved to.
    fn ask(&self, url: &str, range: Option<&str>) -> Result<Answer, String> {
        let mut url = url.to_owned();
        let token = self.token.as_deref().unwrap_or_default();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token (HF_TOKEN) holds characters that no token has".into());
        }
        let (mut etag, mut commit, mut is_first) = (None, None, false);
        for redirects in 0..=REDIRECTS {
            let is_hub = origin(&url) == origin(&self.endpoint);
            let request = || {
                // Of packed bytes, a range would be another.
                let mut request = self.agent.get(&url).header("Accept-Encoding", "identity");
                if let Some(range) = range {
                    request = request.header("Range", range);
                }
                if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
                    request = request.header("Authorization", format!("Bearer {token}"));
                }
                request.call()
            };
            let response = patiently(&url, request).map_err(|error| error.to_string())?;
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
        Err(format!("more than {REDIRECTS} redirects"))
    }
}

/// The response of `call`, which is done again after pauses as long as the server says that it cannot answer now. One
/// that does not answer at all is not waited for: what is in the cache is used then.
fn patiently(
    url: &str,
    call: impl Fn() -> Result<Response<Body>, ureq::Error>,
) -> Result<Response<Body>, ureq::Error> {
    for seconds in PAUSES {
        match call() {
            Err(error @ ureq::Error::StatusCode(408 | 429 | 500..=599)) => {
                wait(url, &error, seconds);
            }
            result => return result,
        }
    }
    call()
}

/// Says why, and waits.
fn wait(what: &str, error: &dyn Display, seconds: u64) {
    log::warn!("{what}: {error}; trying again in {seconds} s");
    thread::sleep(Duration::from_secs(seconds));
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

/// Whether the lock was got. Some network file systems have none: there, nothing keeps two processes apart.
fn is_locked(mut lock: impl FnMut() -> io::Result<()>) -> bool {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.is_ok(),
        }
    }
}

/// That the file is what the hub has, which names large files by their SHA-256, and small ones as git does, by
/// the SHA-1 of a line with their length and of their bytes (some mirrors: of their bytes). Another file is removed.
/// A name of another kind says nothing.
fn verify(part: &Path, etag: &str) -> Result<(), String> {
    let said = |error: io::Error| error.to_string();
    let (kind, found) = match etag.len() {
        _ if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) => return Ok(()),
        64 => ("SHA-256", vec![hash(part, Sha256::new()).map_err(said)?]),
        40 => {
            let length = fs::metadata(part).map_err(said)?.len();
            let blob = Sha1::new().chain_update(format!("blob {length}\0"));
            let hashes = [blob, Sha1::new()].map(|begun| hash(part, begun).map_err(said));
            let hashes: Result<Vec<_>, _> = hashes.into_iter().collect();
            ("git hash", hashes?)
        }
        _ => return Ok(()),
    };
    if found.iter().any(|found| found.eq_ignore_ascii_case(etag)) {
        return Ok(());
    }
    fs::remove_file(part).map_err(said)?;
    Err(format!(
        "what came has the {kind} {}, and should have {etag}; it is removed, try again",
        found[0]
    ))
}

/// The hash of a file, after what was hashed before, in hexadecimal digits.
fn hash(path: &Path, mut digest: impl Digest + io::Write) -> io::Result<String> {
    io::copy(&mut File::open(path)?, &mut digest)?;
    let bytes = digest.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
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
    fn files_are_those_that_the_hub_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        for (etag, is_same) in [
            // `git hash-object`, `sha1sum` and `sha256sum` of "hello\n".
            ("ce013625030ba8dba906f756967f9e9ca394464a", true),
            ("f572d396fae9206628714fb2ce00f72e94f2258f", true),
            (
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
                true,
            ),
            ("de013625030ba8dba906f756967f9e9ca394464a", false),
            (
                "4891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
                false,
            ),
            ("some-other-name", true),
        ] {
            fs::write(&path, "hello\n").unwrap();
            let verified = verify(&path, etag);
            assert_eq!(verified.is_ok(), is_same, "{etag}: {verified:?}");
            assert_eq!(path.exists(), is_same);
        }
    }

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
