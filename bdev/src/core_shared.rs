use std::any::Any;
use std::cell::RefCell;
use std::rc::{Rc, Weak};

use base::{BufferPool, CoreId};

/// A key, and what is shared under it.
type Shared = (usize, Weak<dyn Any>);

/// What the channels of one core have in common: the core's name, the pool their buffers come from, and things that
/// several channels use together, such as the queue pair of a controller whose namespaces each have a channel.
///
/// One core makes one and keeps it; it is not `Send`. A clone is the same, for a channel that opens another one later.
/// What is shared lives as long as a channel holds it.
#[derive(Clone)]
pub struct CoreShared {
    core: CoreId,
    pool: Option<BufferPool>,
    shared: Rc<RefCell<Vec<Shared>>>,
}

impl std::fmt::Debug for CoreShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreShared").field("core", &self.core).finish_non_exhaustive()
    }
}

impl CoreShared {
    /// Of `core`, whose buffers come from no pool in particular.
    #[must_use]
    pub fn new(core: CoreId) -> CoreShared {
        CoreShared { core, pool: None, shared: Rc::default() }
    }

    /// Of `core`, whose buffers come from `pool`, so that devices can map it before the first request.
    #[must_use]
    pub fn with_pool(core: CoreId, pool: &BufferPool) -> CoreShared {
        CoreShared { pool: Some(pool.clone()), ..CoreShared::new(core) }
    }

    /// The core.
    #[must_use]
    pub fn core(&self) -> CoreId {
        self.core
    }

    /// Where the buffers of requests come from, if it is known.
    #[must_use]
    pub fn pool(&self) -> Option<&BufferPool> {
        self.pool.as_ref()
    }

    /// The `T` that was shared under `key` and is still held by a channel, or a new one from `make`. The key is the
    /// address of what the thing belongs to (`Arc::as_ptr` of a controller): unique while somebody holds that.
    ///
    /// # Errors
    /// Those of `make`; nothing is remembered then.
    pub fn share<T: 'static, E>(&self, key: usize, make: impl FnOnce() -> Result<T, E>) -> Result<Rc<T>, E> {
        let held = self
            .shared
            .borrow()
            .iter()
            .filter(|(known, _)| *known == key)
            .find_map(|(_, weak)| weak.upgrade()?.downcast::<T>().ok());
        if let Some(held) = held {
            return Ok(held);
        }
        let made = Rc::new(make()?);
        let any: Rc<dyn Any> = made.clone();
        let mut shared = self.shared.borrow_mut();
        shared.retain(|(_, weak)| weak.strong_count() > 0);
        shared.push((key, Rc::downgrade(&any)));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_of_one_core_share_by_key_as_long_as_one_holds_it() {
        let core = CoreShared::new(CoreId(3));
        let never = || -> Result<String, ()> { panic!("there is one already") };
        let first = core.share(1, || Ok::<_, ()>("one".to_owned())).unwrap();
        assert!(Rc::ptr_eq(&first, &core.share(1, never).unwrap()));
        let other = core.share(2, || Ok::<_, ()>("two".to_owned())).unwrap();
        assert_eq!((first.as_str(), other.as_str(), core.core()), ("one", "two", CoreId(3)));
        // Another type under the same key is another thing.
        assert_eq!(*core.share(1, || Ok::<_, ()>(7_u8)).unwrap(), 7);
        drop(first);
        assert_eq!(core.share(1, || Err::<String, _>("gone")).unwrap_err(), "gone");
        assert_eq!(*core.share(1, || Ok::<_, ()>("again".to_owned())).unwrap(), "again");
    }
}
