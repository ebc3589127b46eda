//! Users that come and go while they own no nodes.

use std::collections::{BTreeMap, BTreeSet};

use lowroad_wire::control::UserId;

use super::super::people::People;
use super::super::view::Parts;
use super::super::world::{TailnetFacts, UserFacts};
use super::Whole;

/// All users, where some are others than before.
#[derive(Debug)]
pub struct Users {
    /// Each of a name and a number of its own.
    pub users: Vec<UserFacts>,
    /// What holds for the tailnet as a whole, which their domains are part of.
    pub tailnet: TailnetFacts,
}

const ALIKE: Whole = Whole("users have a name or a number in common");

impl Parts {
    /// The same for other users, if those that differ own no nodes: no alias then means other nodes than before.
    pub(super) fn follow_users(&mut self, new: &Users) -> Result<(), Whole> {
        let (roles, other_roles) = (&self.tailnet, &new.tailnet);
        if (roles.owner, &roles.admins) != (other_roles.owner, &other_roles.admins) {
            return Err(Whole("users have other roles"));
        }
        let people = People::new(&self.document, &new.users);
        let before = by_number(&self.people, &self.users).ok_or(ALIKE)?;
        let after = by_number(&people, &new.users).ok_or(ALIKE)?;
        let both: BTreeSet<&UserId> = before.keys().chain(after.keys()).collect();
        let is_other = |user: &&UserId| before.get(user) != after.get(user);
        let owns_nodes = |user: &UserId| self.devices.contains_key(user);
        if both.into_iter().filter(is_other).any(owns_nodes) {
            return Err(Whole("a user who owns nodes is another"));
        }
        self.people = people.into();
        self.users = new.users.clone().into();
        self.tailnet = new.tailnet.clone();
        Ok(())
    }
}

/// `None` if two have a name or a number in common: then one stands for both in policies.
fn by_number<'a>(
    people: &People,
    users: &'a [UserFacts],
) -> Option<BTreeMap<UserId, &'a UserFacts>> {
    let numbers: BTreeMap<UserId, &UserFacts> = users.iter().map(|user| (user.id, user)).collect();
    let are_apart = numbers.len() == users.len() && people.names() == users.len();
    are_apart.then_some(numbers)
}
