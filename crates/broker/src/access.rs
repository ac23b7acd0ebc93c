// STUB
use crate::error::Result;
#[derive(Clone, Copy)] pub enum Action { Configure, Write, Read }
#[derive(Clone, Copy)] pub enum Resource<'a> { Queue(&'a str), Exchange(&'a str) }
#[derive(Default)] pub struct Access {}
impl Access {
    pub fn authorise(&self, _u: &str, _v: &str, _a: Action, _r: Resource) -> Result<()> { Ok(()) }
    pub fn authorise_any(&self, _u: &str, _v: &str, _r: Resource) -> Result<()> { Ok(()) }
    pub fn authorise_topic(&self, _u: &str, _v: &str, _a: Action, _x: &str, _k: &str) -> Result<()> { Ok(()) }
    pub fn queues_max(&self, _v: &str) -> Option<u64> { None }
    pub fn disconnected(&mut self, _u: &str, _v: &str) {}
}
