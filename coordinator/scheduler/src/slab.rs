//! Storage by small index: an entity's index stays the same while it lives and is used again afterwards.

/// An index type for one kind of entity.
macro_rules! index_types {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(pub(crate) u32);

        impl From<u32> for $name {
            fn from(index: u32) -> Self {
                Self(index)
            }
        }

        impl From<$name> for u32 {
            fn from(index: $name) -> Self {
                index.0
            }
        }
    )+};
}

index_types! {
    AlikeIx;
    BuildIx;
    TaskIx;
    WorkerIx;
    PlatformIx;
    SelectorIx;
    LaneIx;
    FlowIx;
    ProjectIx;
    RepositoryIx;
    ShareIx;
}

/// Entries move never and the storage grows by a page, so that no insert pays for all that are there.
const PAGE: usize = 256;

#[derive(Debug)]
pub(crate) struct Slab<I, T> {
    pages: Vec<Vec<Option<T>>>,
    slots: usize,
    free: Vec<u32>,
    index: std::marker::PhantomData<I>,
}

impl<I, T> Default for Slab<I, T> {
    fn default() -> Self {
        Self { pages: Vec::new(), slots: 0, free: Vec::new(), index: std::marker::PhantomData }
    }
}

impl<I: From<u32> + Into<u32> + Copy, T> Slab<I, T> {
    pub(crate) fn insert(&mut self, entry: T) -> I {
        if let Some(at) = self.free.pop() {
            self.pages[at as usize / PAGE][at as usize % PAGE] = Some(entry);
            return I::from(at);
        }
        if self.slots.is_multiple_of(PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        self.pages[self.slots / PAGE].push(Some(entry));
        self.slots += 1;
        I::from(u32::try_from(self.slots - 1).unwrap_or(u32::MAX))
    }

    pub(crate) fn remove(&mut self, index: I) -> Option<T> {
        let at: u32 = index.into();
        let entry = self.pages.get_mut(at as usize / PAGE)?.get_mut(at as usize % PAGE)?.take()?;
        self.free.push(at);
        Some(entry)
    }

    pub(crate) fn get(&self, index: I) -> Option<&T> {
        let at = index.into() as usize;
        self.pages.get(at / PAGE)?.get(at % PAGE)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: I) -> Option<&mut T> {
        let at = index.into() as usize;
        self.pages.get_mut(at / PAGE)?.get_mut(at % PAGE)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        (0_u32..).zip(self.pages.iter().flatten()).filter_map(|(at, entry)| Some((I::from(at), entry.as_ref()?)))
    }

    pub(crate) fn len(&self) -> usize {
        self.slots - self.free.len()
    }
}

/// An index is handed out with its entity and dropped with it; one that outlives its entity is a defect.
impl<I: From<u32> + Into<u32> + Copy, T> std::ops::Index<I> for Slab<I, T> {
    type Output = T;

    fn index(&self, index: I) -> &T {
        self.get(index).expect("the index of an entity that lives")
    }
}

impl<I: From<u32> + Into<u32> + Copy, T> std::ops::IndexMut<I> for Slab<I, T> {
    fn index_mut(&mut self, index: I) -> &mut T {
        self.get_mut(index).expect("the index of an entity that lives")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_used_again_only_after_its_entity_is_gone() {
        let mut slab = Slab::<TaskIx, &str>::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!((slab[a], slab[b], slab.len()), ("a", "b", 2));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert("c"), a);
        assert_eq!(slab.iter().map(|(_, entry)| *entry).collect::<Vec<_>>(), ["c", "b"]);
    }
}
