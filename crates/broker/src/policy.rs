// STUB
#[derive(Default)] pub struct Policies {}
