//! `infer serve`.

use std::env::{self, VarError};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::CommandError;
use crate::chat::ChatFileError;
use crate::engine::{Engine, EngineOptions};
use crate::model_args::{FoundModel, ModelArgs, check_vocabulary};
use crate::serve::{self, ServeError, ServedModel, ServerOptions};

/// Serves a model over HTTP as OpenAI serves its own.
///
/// POST /v1/completions continues texts, for any program that speaks OpenAI's interface, and with a model
/// that has a chat template POST /v1/chat/completions answers; GET / is a page to try the model on;
/// /v1/models, /health and /metrics (Prometheus) say how it is.
///
/// The text of a request that has a seed is always the same, however many other requests are served at
/// the same time. Ctrl-C, or SIGTERM, ends the server when the requests that it has are answered, and after
/// --grace at the latest; another one, more than a second later, ends it at once.
///
/// Requests are answered that are for localhost or an address of this machine, so that no page of another
/// site can use the server through a browser; --allowed-host adds names. A client that reads nothing of its
/// answer for a minute, or less than about 2 KiB a second, loses its connection.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The address to listen on; 0.0.0.0 is all of this machine's
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,

    /// The port to listen on; 0 is any that is free
    #[arg(long, default_value_t = 8000)]
    port: u16,

    /// What requests must bring, as `Authorization: Bearer KEY`
    ///
    /// White space around it does not count. Also taken from the environment variable INFER_API_KEY, which
    /// other users of the machine do not see. Only /, its files and /health are open without it.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,

    /// A name or an address that requests may be for, as their Host says; may be given several times
    ///
    /// Loopback addresses, localhost and --host are allowed in any case, and with --host 0.0.0.0 (or ::)
    /// every address. Other names have to be given, such as that of this machine in its network, or that of a
    /// proxy in front of the server, whose pages may then use it too. Without this check a page of any site
    /// could give its own name an address of this machine, and then read what the server answers.
    #[arg(long, value_name = "NAME", value_parser = serve::allowed_host)]
    allowed_host: Vec<String>,

    /// What requests call the model; its folder's or its hub name by default
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,

    /// Texts that are made at a time, at most
    ///
    /// Each takes the memory of a state (see the page's curve). They are computed eight at a time. Requests
    /// take turns. One that asks for many texts has all slots while it is alone, and leaves about a third of
    /// them to others while these wait and for a second after one has come.
    #[arg(long, default_value_t = 32, value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    slots: usize,

    /// Texts that wait beside them, at most; more are refused with 429
    #[arg(long, default_value_t = 256, value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    queue: usize,

    /// The most tokens that a request may ask for
    #[arg(long, default_value_t = 4096)]
    max_tokens: usize,

    /// Seconds after which the texts of a request end where they are
    ///
    /// What was made by then is the answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    time_limit: u64,

    /// Bytes of a request, at most
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    body_limit: usize,

    /// Bytes that a reply may come to, at most
    ///
    /// They are estimated before anything is computed: for each text max_tokens, and with echo the tokens of
    /// its prompt, at 32 bytes a token, and with logprobs 100 bytes more for each of logprobs + 1 scores. Four
    /// replies of this size may be made at once, two of them for one address; more are refused with 429. A
    /// client that for longer than a minute reads less than 64 KiB a second of a reply that may be larger than
    /// 1 MiB loses its connection.
    #[arg(long, value_name = "BYTES", default_value_t = 128 << 20)]
    reply_limit: usize,

    /// Connections of one address, at most
    ///
    /// For a further one, the server closes the connection that has been idle for longest; if none is idle, the
    /// new one is refused with 429. A proxy in front of the server is one address.
    #[arg(long, value_name = "CONNECTIONS", default_value_t = 256, value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    connections_per_address: usize,

    /// Seconds that a stop may take, at most
    ///
    /// A little before, the texts that are being made end where they are, and are sent.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    grace: u64,
}

/// Seconds that the head of a request may take to arrive, and its body.
const ARRIVAL_SECONDS: u64 = 30;

/// Seconds after which the connection of a client that reads nothing of its answer is closed.
const WRITE_SECONDS: u64 = 60;

impl ServeArgs {
    /// Serves until a signal ends it.
    pub fn run(self) -> Result<(), CommandError> {
        let backend = self.model.compute.backend()?;
        let api_key = api_key(self.api_key)?;
        let address = SocketAddr::new(self.host, self.port);
        // Before a model is fetched or loaded, which may take long.
        let listener =
            TcpListener::bind(address).map_err(|source| ServeError::Address { address, source })?;
        let found = self.model.find()?;
        let chat = found.chat_template();
        let FoundModel {
            folder,
            tokenizer,
            precision,
        } = found;
        let tokenizer = Arc::new(tokenizer);
        let options = ServerOptions {
            name: self
                .model_name
                .unwrap_or_else(|| name_of(&self.model.model)),
            api_key,
            allowed_hosts: self.allowed_host,
            max_tokens: self.max_tokens,
            time_limit: Duration::from_secs(self.time_limit),
            body_limit: self.body_limit,
            reply_limit: self.reply_limit,
            connections_per_address: self.connections_per_address,
            head_time: Duration::from_secs(ARRIVAL_SECONDS),
            body_time: Duration::from_secs(ARRIVAL_SECONDS),
            write_time: Duration::from_secs(WRITE_SECONDS),
            grace: Duration::from_secs(self.grace),
        };
        let engine = Engine::start(EngineOptions {
            backend,
            model: folder.clone(),
            precision,
            tokenizer: tokenizer.clone(),
            slots: self.slots,
            queue: self.queue,
        });
        let (engine, engine_thread) = engine.map_err(ServeError::from)?;
        check_vocabulary(&tokenizer, &folder, engine.facts().vocab_size)?;
        let address = listener.local_addr().map_err(ServeError::Listener)?;
        let mut lines = announcement(address, &options);
        if let Err(error) = &chat
            && !matches!(error, ChatFileError::None { .. })
        {
            lines += &format!("/v1/chat/completions cannot be used: {error}\n");
        }
        let model = ServedModel {
            engine,
            engine_thread,
            tokenizer,
            chat: chat.map_err(|error| why_no_chat(&error)),
        };
        let announce = || say(lines);
        Ok(serve::run(model, options, listener, announce)?)
    }
}

/// The message for a client that asks for a chat. It does not show where the model's files are.
fn why_no_chat(error: &ChatFileError) -> String {
    match error {
        ChatFileError::None { .. } => "this model has no chat template, so it continues texts at \
                                       /v1/completions and does not chat"
            .to_owned(),
        ChatFileError::Template { reason, .. } => reason.to_string(),
        _ => "this model's chat template cannot be used; the server has reported why".to_owned(),
    }
}

/// The line that says where the server listens, and for which hosts.
fn announcement(address: SocketAddr, options: &ServerOptions) -> String {
    let mut lines = String::new();
    if !address.ip().is_loopback() && options.api_key.is_none() {
        lines += &format!("anyone who can reach {address} can use it: there is no --api-key\n");
    }
    lines + &format!("{} at http://{address}\n", options.name)
}

/// Writes lines to standard error, on another thread.
///
/// The server must also work if standard error is closed, or is a pipe that is not read, which would block this thread.
/// If no thread can be started, the lines are not written.
fn say(lines: String) {
    let say = move || {
        let _ = io::stderr().write_all(lines.as_bytes());
    };
    let _ = thread::Builder::new().name("announce".into()).spawn(say);
}

/// The key that was given, or that of the environment.
fn api_key(given: Option<String>) -> Result<Option<String>, ServeError> {
    let key = match given.map_or_else(|| env::var("INFER_API_KEY"), Ok) {
        Err(VarError::NotPresent) => return Ok(None),
        key => key.unwrap_or_default(),
    };
    serve::check_api_key(&key)?;
    Ok(Some(key))
}

/// The last part of a folder's path, or a model's name on the hub.
fn name_of(model: &Path) -> String {
    let folder = model.canonicalize().ok();
    let name = folder.as_deref().and_then(Path::file_name);
    match name {
        Some(name) => name.to_string_lossy().into_owned(),
        None => model.display().to_string(),
    }
}
