//! The complete reading at the beginning of a session: every prefix at one revision, page by page.
//!
//! A page is bounded in keys by the settings and in bytes by the largest response that is taken, and neither number knows
//! of the other. A page that turns out too large is asked for again with half as many keys; after one that was taken the
//! number grows again, up to the setting. What is left is a single key that is too large: it is asked for without its
//! value, so that it can be named, and the reading goes on behind it.
//!
//! What a reading collects is bounded like what the catalog keeps: beyond that, keys are read without values, and beyond
//! several times as many keys, the reading ends as an incomplete one, after which no other key is taken to be gone.

use std::sync::atomic::Ordering::Relaxed;

use etcd_client::{Client, GetOptions, GetResponse, KeyValue, KvClient};

use super::Store;
use super::session::{Session, SessionError, compacted, pause, prefix_end};
use crate::config::checked::{EtcdWatch, RegistryLimits};
use crate::registry::apply::{Content, Entry, Event};
use crate::registry::layout;
use crate::registry::limits::Kept;

/// Keys of a reading that are named, in multiples of the endpoints that are kept.
const NAMED: usize = 4;

/// Reads every prefix at the revision of the first answer, and hands it on.
pub(super) async fn read(session: &Session<'_>, client: &Client) -> Result<Store, SessionError> {
    let config = session.config;
    let mut kv = client.kv_client().max_decoding_message_size(config.largest);
    let mut reading = Reading { session, kv: &mut kv, store: None, page: config.page.max(1) };
    for (part, watch) in config.watches.iter().enumerate() {
        let event = reading.prefix(watch).await?;
        session.feed.send(part, vec![event]).await;
    }
    let store = reading.store.ok_or(SessionError::NoHeader)?;
    session.feed.own().relists.fetch_add(1, Relaxed);
    session.feed.own().revision.store(store.revision, Relaxed);
    Ok(store)
}

struct Reading<'a> {
    session: &'a Session<'a>,
    kv: &'a mut KvClient,
    store: Option<Store>,
    /// Keys of the next page.
    page: u32,
}

/// How much of a page is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    With,
    Without,
}

impl Reading<'_> {
    async fn prefix(&mut self, watch: &EtcdWatch) -> Result<Event, SessionError> {
        let prefix = layout::range_prefix(&watch.prefix);
        let end = prefix_end(&prefix);
        let mut from = if prefix.is_empty() { vec![0] } else { prefix };
        let mut collected = Collected::new(self.session.config.limits);
        loop {
            let values = if collected.is_full { Values::Without } else { Values::With };
            let (page, is_too_large) = match self.page(&from, &end, self.page, values).await? {
                Some(page) => (page, false),
                None if self.page > 1 => {
                    self.page /= 2;
                    continue;
                }
                // Not even its name fits: there is nothing left to ask for.
                None => match self.page(&from, &end, 1, Values::Without).await? {
                    Some(page) => (page, true),
                    None => return Err(SessionError::TooLarge(self.session.config.largest)),
                },
            };
            for (i, kv) in page.kvs().iter().enumerate() {
                if is_too_large {
                    let largest = self.session.config.largest;
                    collected.name(kv, format!("its value is too large; answers of {largest} bytes are taken"));
                } else if values == Values::Without {
                    collected.name(kv, collected.why_full());
                } else {
                    collected.put(watch, kv);
                }
                pause(i + 1).await;
            }
            let Some(last) = page.kvs().last().filter(|_| page.more()) else {
                return Ok(Event::Reset(collected.entries));
            };
            if collected.entries.len() >= collected.limits.max_endpoints.saturating_mul(NAMED) {
                self.session.feed.skipped("the rest of the keys: there are several times as many as max_endpoints");
                return Ok(Event::Partial(collected.entries));
            }
            from = [last.key(), &[0]].concat();
            self.page = self.page.saturating_mul(2).min(self.session.config.page.max(1));
        }
    }

    /// One page; none where it is larger than what is taken.
    async fn page(
        &mut self,
        from: &[u8],
        end: &[u8],
        keys: u32,
        values: Values,
    ) -> Result<Option<GetResponse>, SessionError> {
        let mut options = GetOptions::new().with_range(end).with_limit(keys.into());
        if let Some(store) = self.store {
            options = options.with_revision(store.revision);
        }
        if values == Values::Without {
            options = options.with_keys_only();
        }
        let request = async { Ok(self.kv.get(from, Some(options)).await) };
        let page = match self.session.limited("reading the keys", request).await? {
            Ok(page) => page,
            Err(error) if compacted(&error) => return Err(SessionError::Compacted),
            Err(error) if is_too_large(&error) => return Ok(None),
            Err(error) => return Err(SessionError::Read(error)),
        };
        let is = Store::of(page.header())?;
        if let Some(error) = self.store.get_or_insert(is).differs(is) {
            return Err(error);
        }
        Ok(Some(page))
    }
}

/// The entries of one prefix, as many as can be kept.
struct Collected {
    limits: RegistryLimits,
    kept: Kept,
    is_full: bool,
    entries: Vec<Entry>,
}

impl Collected {
    fn new(limits: RegistryLimits) -> Self {
        Self { limits, kept: Kept::default(), is_full: false, entries: Vec::new() }
    }

    fn why_full(&self) -> String {
        let RegistryLimits { max_endpoints, max_bytes } = self.limits;
        format!("max_endpoints ({max_endpoints}) or max_registry_bytes ({max_bytes}) is reached")
    }

    fn put(&mut self, watch: &EtcdWatch, kv: &KeyValue) {
        if self.is_full {
            return self.name(kv, self.why_full());
        }
        let Ok(entry) = put(watch, kv) else { return };
        if let Content::Announced(announced) = &entry.content {
            self.kept.add(Kept::of(&entry.key, announced));
            // The entry that goes beyond the limit is for the catalog to judge: it may know its key already.
            self.is_full = self.kept.exceeds(&self.limits, Kept::default(), Kept::default()).is_some();
        }
        self.entries.push(entry);
    }

    /// A key that is there, and of which no more is to be known.
    fn name(&mut self, kv: &KeyValue, reason: String) {
        self.entries.push(Entry { key: kv.key().to_vec(), order: order(kv), content: Content::Unreadable(reason) });
    }
}

/// What a key and its value announce.
///
/// # Errors
///
/// The key, where it is as good as none.
pub(super) fn put(watch: &EtcdWatch, kv: &KeyValue) -> Result<Entry, Vec<u8>> {
    let content = match layout::decode(watch.layout, &watch.prefix, kv.key(), kv.value()) {
        Ok(Some(announced)) => Content::Announced(announced),
        Ok(None) => return Err(kv.key().to_vec()),
        Err(error) => Content::Unreadable(error.to_string()),
    };
    Ok(Entry { key: kv.key().to_vec(), order: order(kv), content })
}

fn order(kv: &KeyValue) -> u64 {
    u64::try_from(kv.create_revision()).unwrap_or(0)
}

/// An answer that is larger than what is taken. gRPC's code for it is that of other errors as well: tonic's own text has
/// to tell, or that of a server or proxy in between.
fn is_too_large(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    let text = status.message();
    text.contains("message length too large") || text.contains("message larger than max")
}
