/// What cores tell each other: freeze, frozen, thaw, nexus claims, changes asked of a home core. Enums, not closures.
#[derive(Debug)]
pub enum Message {}
