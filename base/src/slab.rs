/// A handle into a [`Slab`]: index and generation. A stale key finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// The slot's index, dense from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// The key as one integer: generation in the high half.
    #[must_use]
    pub fn to_u64(self) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(self.index)
    }

    /// The key that [`Key::to_u64`] gave `bits` for.
    #[must_use]
    pub const fn from_u64(bits: u64) -> Key {
        Key { index: (bits & 0xFFFF_FFFF) as u32, generation: (bits >> 32) as u32 }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    next_free: u32,
    value: Option<T>,
}

/// A table with stable, generation-checked keys and LIFO reuse. It never grows past the capacity it was made
/// with: `insert` gives the value back when full, so nothing from the wire can make it allocate.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: u32,
    length: usize,
    capacity: usize,
}

const NONE: u32 = u32::MAX;

impl<T> Slab<T> {
    /// An empty slab for at most `capacity` values, all memory reserved now.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Slab<T> {
        Slab { slots: Vec::with_capacity(capacity), free: NONE, length: 0, capacity }
    }

    /// How many values are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// True when no value is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// True when the next `insert` would fail.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.length == self.capacity
    }

    /// How many values it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Puts `value` in a free slot.
    ///
    /// # Errors
    /// Gives `value` back when the slab is full.
    pub fn insert(&mut self, value: T) -> Result<Key, T> {
        if self.free != NONE {
            let index = self.free;
            let slot = &mut self.slots[index as usize];
            self.free = slot.next_free;
            slot.value = Some(value);
            self.length += 1;
            return Ok(Key { index, generation: slot.generation });
        }
        if self.slots.len() == self.capacity {
            return Err(value);
        }
        let index = u32::try_from(self.slots.len()).unwrap_or(NONE);
        self.slots.push(Slot { generation: 1, next_free: NONE, value: Some(value) });
        self.length += 1;
        Ok(Key { index, generation: 1 })
    }

    /// The value under `key`, if it is still there.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        self.slots.get(key.index()).filter(|slot| slot.generation == key.generation)?.value.as_ref()
    }

    /// The value under `key`, if it is still there.
    #[must_use]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slots.get_mut(key.index()).filter(|slot| slot.generation == key.generation)?.value.as_mut()
    }

    /// Takes the value out and makes `key` stale.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index()).filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1).max(1);
        slot.next_free = self.free;
        self.free = key.index;
        self.length -= 1;
        Some(value)
    }

    /// Every value with its key, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let value = slot.value.as_ref()?;
            Some((Key { index: index as u32, generation: slot.generation }, value))
        })
    }

    /// Every value with its key, in slot order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let generation = slot.generation;
            let value = slot.value.as_mut()?;
            Some((Key { index: index as u32, generation }, value))
        })
    }

    /// The key of the value in slot `index`, if one is there.
    #[must_use]
    pub fn key_at(&self, index: usize) -> Option<Key> {
        let slot = self.slots.get(index)?;
        slot.value.as_ref()?;
        Some(Key { index: u32::try_from(index).ok()?, generation: slot.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_keys_find_nothing() {
        let mut slab = Slab::with_capacity(2);
        let a = slab.insert("a").unwrap();
        assert_eq!(slab.remove(a), Some("a"));
        let b = slab.insert("b").unwrap();
        assert_eq!(b.index(), a.index());
        assert_eq!(slab.get(a), None);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(b), Some(&"b"));
        assert_eq!(Key::from_u64(b.to_u64()), b);
    }

    #[test]
    fn a_full_slab_gives_the_value_back() {
        let mut slab = Slab::with_capacity(1);
        slab.insert(1).unwrap();
        assert_eq!(slab.insert(2), Err(2));
        assert_eq!(slab.len(), 1);
    }
}
