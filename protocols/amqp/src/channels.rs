//! A connection's channels by number: found with two steps, and one with a high number costs no more than one with a low.

use crate::channel::Channel;

const PAGE: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Channels {
    pages: Vec<Option<Box<[Option<Box<Channel>>; PAGE]>>>,
    count: u32,
}

impl Channels {
    pub fn len(&self) -> u32 {
        self.count
    }

    pub fn get(&self, number: u16) -> Option<&Channel> {
        let (page, place) = split(number);
        self.pages.get(page)?.as_deref()?.get(place)?.as_deref()
    }

    #[inline]
    pub fn get_mut(&mut self, number: u16) -> Option<&mut Channel> {
        let (page, place) = split(number);
        self.pages.get_mut(page)?.as_deref_mut()?.get_mut(place)?.as_deref_mut()
    }

    /// The number must be free.
    pub fn insert(&mut self, number: u16, channel: Channel) {
        let (page, place) = split(number);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages.get_mut(page).map(|page| page.get_or_insert_with(|| Box::new([const { None }; PAGE])));
        if let Some(place) = page.and_then(|page| page.get_mut(place)) {
            debug_assert!(place.is_none(), "channel {number} lives already");
            *place = Some(Box::new(channel));
            self.count += 1;
        }
    }

    pub fn remove(&mut self, number: u16) {
        let (page, place) = split(number);
        let page = self.pages.get_mut(page).and_then(Option::as_deref_mut);
        if page.and_then(|page| page.get_mut(place)?.take()).is_some() {
            self.count -= 1;
        }
    }

    /// Takes all out, in the order of their numbers.
    pub fn drain(&mut self) -> impl Iterator<Item = (u16, Box<Channel>)> + use<> {
        self.count = 0;
        let pages = std::mem::take(&mut self.pages).into_iter().enumerate();
        pages.flat_map(|(i, page)| {
            let channels = page.into_iter().flat_map(|page| (*page).into_iter().enumerate());
            channels.filter_map(move |(place, channel)| Some(((i * PAGE + place) as u16, channel?)))
        })
    }
}

#[inline]
fn split(number: u16) -> (usize, usize) {
    (number as usize / PAGE, number as usize % PAGE)
}
