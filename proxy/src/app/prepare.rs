//! Everything of a configuration that can fail, done before anything changes.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use super::StartError;
use crate::admin;
use crate::clock::Clock;
use crate::config::checked::{self, Config, Policy, Services};
use crate::handover::Inherited;
use crate::plugin::{Engine, Folder, LoadError, Plugins, Unusable};
use crate::policy::Role;
use crate::proto::headers::Signature;
use crate::server::listener::Listener;
use crate::server::socket::{self, Bound};
use crate::server::worker::Common;
use crate::transport::tls::{Files, Terminator};

/// What is in force, as far as another configuration has to know it.
pub struct Before {
    pub config: Config,
    pub plugins: Arc<Plugins>,
    pub files: Arc<Mutex<Files>>,
    /// Each listener's address as it was configured, and as it is.
    pub doors: Vec<(SocketAddr, Arc<Listener>)>,
    /// The admin server's, likewise.
    pub admin: Option<(SocketAddr, SocketAddr)>,
}

/// A configuration that can be put in force, and will then work.
pub struct Prepared {
    pub config: Config,
    pub common: Arc<Common>,
    pub plugins: Arc<Plugins>,
    /// What follows the folder of plugins, where that is another one than before.
    pub folder: Option<Option<Folder>>,
    pub files: Files,
    /// In the order of the configuration.
    pub doors: Vec<Opening>,
    pub admin: AdminAt,
    /// At the start, where commands are taken.
    pub commands: Option<admin::Socket>,
}

/// A listener to be opened, or to go on.
pub struct Opening {
    pub settings: checked::Listener,
    pub tls: Arc<Terminator>,
    pub at: At,
}

/// Where a listener listens.
pub enum At {
    /// Where the listener of this number does already.
    Before(usize),
    Bound(Bound),
}

/// Where the admin server listens.
pub enum AdminAt {
    Nowhere,
    /// As before.
    Before,
    /// The address as it was configured.
    Bound(SocketAddr, TcpListener),
}

impl Prepared {
    /// Prepares for a start, or for going on with another configuration. This compiles plugins and reads files: not for
    /// a thread that has to do with requests.
    ///
    /// # Errors
    ///
    /// Everything that is wrong. Nothing has changed then.
    pub fn new(config: Config, before: Option<&Before>, mut inherited: Inherited) -> Result<Self, Vec<StartError>> {
        let mut errors = before.map(|before| fixed(&before.config, &config)).unwrap_or_default();
        let signature = Signature::new(&config.via);
        if signature.is_none() {
            errors.push(StartError::Via(config.via.clone()));
        }
        let mut files = match before {
            Some(before) => Files::after(&before.files.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Files::default(),
        };
        let (doors, admin) = addresses(&config, before, &mut inherited, &mut files, &mut errors);
        let path = config.admin_socket.as_deref().filter(|_| before.is_none());
        let commands = path.map(|path| inherited.take_commands(path).map_or_else(|| admin::Socket::bind(path), Ok));
        let commands = commands.transpose().map_err(|error| errors.push(error.into())).ok().flatten();
        let services = config.services.named.values().chain([&config.services.default]);
        for settings in services.filter_map(|service| service.tls.as_ref()) {
            errors.extend(files.connector(settings).err().map(StartError::from));
        }
        // Last, since it takes longest, and is undone if there are errors.
        let plugins = match before.filter(|before| is_same_place(&before.config.plugins, &config.plugins)) {
            Some(before) => go_on(&before.plugins, &config, &mut errors),
            None => load(&config, before.map(|before| before.plugins.engine().as_ref()), &mut errors),
        };
        let (Some(signature), Some(plugins), true) = (signature, plugins, errors.is_empty()) else {
            if let Some(before) = before {
                before.plugins.settle(&policies(&before.config.services));
            }
            return Err(errors);
        };
        let folder = match before {
            Some(before)
                if is_same_place(&before.config.plugins, &config.plugins)
                    && before.config.plugins.rescan == config.plugins.rescan =>
            {
                None
            }
            _ => Some(config.plugins.folder.clone().map(Folder::new)),
        };
        plugins.engine().set_compile_limits(config.plugins.compile);
        let mut connectors = files.connectors();
        if let Some(before) = before {
            // Workers take notice of services a moment later than of this.
            let before = before.files.lock().unwrap_or_else(PoisonError::into_inner).connectors();
            for (settings, connector) in before {
                connectors.entry(settings).or_insert(connector);
            }
        }
        let common = Arc::new(Common { signature, suffix: config.suffix.clone(), connectors });
        Ok(Self { config, common, plugins, folder, files, doors, admin, commands })
    }
}

/// What has changed although it cannot.
fn fixed(before: &Config, now: &Config) -> Vec<StartError> {
    let changes = [
        ("workers", before.workers != now.workers),
        ("state", before.state != now.state),
        ("admin_socket", before.admin_socket != now.admin_socket),
    ];
    changes.into_iter().filter(|(_, changes)| *changes).map(|(key, _)| StartError::Fixed(key)).collect()
}

/// Whether plugins come from where they came from, with the same bounds.
fn is_same_place(before: &checked::Plugins, now: &checked::Plugins) -> bool {
    *before == checked::Plugins { rescan: before.rescan, compile: before.compile, ..now.clone() }
}

/// What listens: on what there was before, on what was inherited, or on what is bound now.
fn addresses(
    config: &Config,
    before: Option<&Before>,
    inherited: &mut Inherited,
    files: &mut Files,
    errors: &mut Vec<StartError>,
) -> (Vec<Opening>, AdminAt) {
    let mut known: Vec<_> = before.map(|before| before.doors.iter().map(Some).collect()).unwrap_or_default();
    let mut doors = Vec::new();
    for settings in &config.listeners {
        let wanted = settings.address;
        let is_it = |(configured, listener): &(SocketAddr, Arc<Listener>)| {
            *configured == wanted || listener.settings.address == wanted
        };
        let place = known.iter().position(|door| door.is_some_and(is_it));
        let door = place.and_then(|place| Some((place, known.get_mut(place)?.take()?)));
        let tls = files.terminator(settings, &config.certificates, door.map(|(_, (_, listener))| &listener.tls));
        let at = match door {
            Some((place, _)) => Ok(At::Before(place)),
            None => match inherited.take(wanted) {
                Some(bound) => socket::adopt(bound, config.workers),
                None => socket::bind(wanted, config.workers),
            }
            .map(At::Bound),
        };
        match (tls, at) {
            (Ok(tls), Ok(at)) => doors.push(Opening { settings: settings.clone(), tls, at }),
            (tls, at) => {
                errors.extend(tls.err().map(StartError::from));
                errors.extend(at.err().map(StartError::from));
            }
        }
    }
    let admin = match (config.admin, before.and_then(|before| before.admin)) {
        (None, _) => AdminAt::Nowhere,
        (Some(wanted), Some((configured, address))) if wanted == configured || wanted == address => AdminAt::Before,
        (Some(wanted), _) => match inherited.take_admin(wanted).map_or_else(|| admin::bind(wanted), Ok) {
            Ok(socket) => AdminAt::Bound(wanted, socket),
            Err(error) => {
                errors.push(error.into());
                AdminAt::Nowhere
            }
        },
    };
    (doors, admin)
}

/// The policies of all services.
pub fn policies(services: &Services) -> Vec<(&Policy, Role)> {
    services.named.values().chain([&services.default]).flat_map(|service| service.policies()).collect()
}

/// The plugins that there are, with what services need besides.
fn go_on(plugins: &Arc<Plugins>, config: &Config, errors: &mut Vec<StartError>) -> Option<Arc<Plugins>> {
    let unusable = plugins.prepare(&policies(&config.services)).err().unwrap_or_default();
    errors.extend(unusable.into_iter().map(unusable_policy));
    Some(plugins.clone())
}

/// The policies that services use. A start takes what it can have at once, and leaves it to the folder's follower to load
/// the files; another configuration waits for all of them, so that a service never loses its policy by it.
fn load(config: &Config, before: Option<&Engine>, errors: &mut Vec<StartError>) -> Option<Arc<Plugins>> {
    let engine = match before {
        Some(before) => Engine::after(before, config.plugins.clone()),
        None => Engine::new(config.plugins.clone(), Clock::running()),
    };
    let engine = match engine {
        Ok(engine) => engine,
        Err(error) => {
            errors.push(StartError::Engine(format!("{error:#}")));
            return None;
        }
    };
    let plugins = Arc::new(Plugins::new(engine));
    for (policy, role) in policies(&config.services) {
        plugins.require(policy, role);
    }
    if before.is_none() {
        // A built-in policy that is not to be used as configured may be there under that name as a file.
        let failed = plugins.load_at_start().err().unwrap_or_default();
        errors.extend(without_file(&plugins, config, &failed));
    } else {
        let unusable = plugins.load_all().err().unwrap_or_default();
        errors.extend(unusable.into_iter().map(unusable_policy));
    }
    Some(plugins)
}

fn unusable_policy((name, error): Unusable) -> StartError {
    match error {
        Some(error) => StartError::Policy { name, error },
        None => StartError::MissingPolicy(name.to_string(), crate::plugin::builtin_names().join(", ")),
    }
}

/// For each policy that there is neither a generation nor a file of: why.
fn without_file(plugins: &Plugins, config: &Config, failed: &[(Arc<str>, LoadError)]) -> Vec<StartError> {
    let has_file = |name: &str| config.plugins.folder.as_deref().is_some_and(|folder| Folder::has(folder, name));
    let missing = plugins.missing().into_iter().filter(|name| !has_file(name));
    let because = |name: &Arc<str>| failed.iter().find(|(failed, _)| failed == name).map(|(_, error)| error.clone());
    missing.map(|name| (name.clone(), because(&name))).map(unusable_policy).collect()
}
