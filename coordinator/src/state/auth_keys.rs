//! Auth keys: made by administrators, used by machines that join.

use std::{sync::Arc, time::Duration};

use lowroad_wire::control::UserId;
use time::OffsetDateTime;

use super::State;
use crate::{
    Error,
    model::{AuthKey, AuthKeyText, KeyId},
    text::parse_id,
};

#[derive(Debug, Clone)]
pub struct NewAuthKey {
    pub user: UserId,
    pub reusable: bool,
    pub ephemeral: bool,
    pub lifetime: Duration,
    pub tags: Vec<String>,
}

impl State {
    pub fn auth_keys(&self) -> impl Iterator<Item = &Arc<AuthKey>> {
        self.auth_keys.values()
    }

    pub fn create_auth_key(
        &mut self,
        new: NewAuthKey,
        text: &AuthKeyText,
        now: OffsetDateTime,
    ) -> Arc<AuthKey> {
        self.last_ids.auth_key += 1;
        let NewAuthKey {
            user,
            reusable,
            ephemeral,
            lifetime,
            mut tags,
        } = new;
        tags.sort();
        tags.dedup();
        let key = AuthKey {
            id: KeyId(self.last_ids.auth_key),
            prefix: text.prefix.clone(),
            hash: text.hash(),
            user,
            reusable,
            ephemeral,
            used: false,
            tags,
            created: now,
            expiry: now.saturating_add(lifetime.try_into().unwrap_or(time::Duration::MAX)),
        };
        self.put_auth_key(key)
    }

    /// `name` is the ID of a key or the key itself.
    pub fn expire_auth_key(
        &mut self,
        name: &str,
        now: OffsetDateTime,
    ) -> Result<Arc<AuthKey>, Error> {
        let prefix = AuthKeyText::parse(name).map_or_else(|| name.to_owned(), |text| text.prefix);
        let id = parse_id(name);
        let found = self
            .auth_keys
            .values()
            .find(|key| Some(key.id.0) == id || key.prefix == prefix);
        let key = found.ok_or_else(|| {
            Error::not_found("there is no such auth key; `auth-keys list` shows all")
        })?;
        let mut key = AuthKey::clone(key);
        key.expiry = key.expiry.min(now);
        Ok(self.put_auth_key(key))
    }

    /// The key that `text` is, if a node may join with it.
    pub(super) fn usable_auth_key(
        &self,
        text: &str,
        now: OffsetDateTime,
    ) -> Result<Arc<AuthKey>, Error> {
        let refuse = |why: &str| {
            Err(Error::unauthorized(format!(
                "auth key {why}; ask an administrator for another"
            )))
        };
        let text = AuthKeyText::parse(text);
        let found = text.and_then(|text| {
            let hash = text.hash();
            self.auth_keys
                .values()
                .find(|key| key.prefix == text.prefix && same(&key.hash, &hash))
        });
        match found {
            None => refuse("not known to this server"),
            Some(key) if key.expiry <= now => refuse("expired"),
            Some(key) if key.used && !key.reusable => {
                refuse("already used, and good for one node only")
            }
            Some(key) if !self.users.contains_key(&key.user) => refuse("of a user who is gone"),
            Some(key) => Ok(key.clone()),
        }
    }

    pub(super) fn note_use(&mut self, key: &AuthKey) {
        if !key.used {
            self.put_auth_key(AuthKey {
                used: true,
                ..key.clone()
            });
        }
    }

    fn put_auth_key(&mut self, key: AuthKey) -> Arc<AuthKey> {
        let key = Arc::new(key);
        self.auth_keys.insert(key.id, key.clone());
        self.mark(|dirty| {
            dirty.auth_keys.insert(key.id);
        });
        key
    }
}

/// Compares in the same time wherever the first difference is.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter()
        .zip(b)
        .fold(0, |difference, (a, b)| difference | (a ^ b))
        == 0
}
