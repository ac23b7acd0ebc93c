//! Values by slot, with a generation: what names a slot that was freed and used again is told apart.

use std::ops::{Index, IndexMut};

#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub fn insert(&mut self, value: T) -> (u32, u32) {
        match self.free.pop() {
            Some(slot) => {
                let entry = &mut self.entries[slot as usize];
                entry.1 = Some(value);
                (slot, entry.0)
            }
            None => {
                self.entries.push((0, Some(value)));
                (self.entries.len() as u32 - 1, 0)
            }
        }
    }

    /// The slot that the next insert takes.
    pub fn next_slot(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.entries.len() as u32)
    }

    /// All slots in use lie below.
    pub fn end(&self) -> u32 {
        self.entries.len() as u32
    }

    pub fn get(&self, slot: u32, generation: u32) -> Option<&T> {
        self.entries.get(slot as usize).filter(|entry| entry.0 == generation)?.1.as_ref()
    }

    pub fn get_mut(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize).filter(|entry| entry.0 == generation)?.1.as_mut()
    }

    pub fn remove(&mut self, slot: u32, generation: u32) -> Option<T> {
        self.get(slot, generation)?;
        self.take(slot)
    }

    /// Frees a slot, whatever its generation.
    pub fn take(&mut self, slot: u32) -> Option<T> {
        let entry = self.entries.get_mut(slot as usize)?;
        let value = entry.1.take()?;
        entry.0 = entry.0.wrapping_add(1);
        self.free.push(slot);
        Some(value)
    }

    pub fn at(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot as usize)?.1.as_ref()
    }

    pub fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize)?.1.as_mut()
    }

    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &T)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(slot, (generation, value))| Some((slot as u32, *generation, value.as_ref()?)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, u32, &mut T)> {
        let entries = self.entries.iter_mut().enumerate();
        entries.filter_map(|(slot, (generation, value))| Some((slot as u32, *generation, value.as_mut()?)))
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        self.at(slot).expect("the slot is in use")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.at_mut(slot).expect("the slot is in use")
    }
}
