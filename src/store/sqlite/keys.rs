//! Keys that sign tokens.

use async_trait::async_trait;

use super::{SqliteStore, change, decode};
use crate::domain::time::Timestamp;
use crate::store::codec::{SecretColumns, SigningKeyColumns};
use crate::store::{Error, KeyStore, Result, SharedSecret, SigningKeyRow};

#[async_trait]
impl KeyStore for SqliteStore {
    async fn signing_keys(&self, limit_rows: u32) -> Result<Vec<SigningKeyRow>> {
        let query = sqlx::query(
            "SELECT generation, created_at, signs_from, verifies_until, sealed, kid, public_key, private_key
             FROM signing_keys ORDER BY generation DESC LIMIT $1",
        );
        let rows = self.read(query.bind(limit_rows)).await?;
        rows.iter().map(|row| Ok(decode::<SigningKeyColumns>(row)?.into())).collect()
    }

    async fn add_signing_key(&self, key: &SigningKeyRow, older_until: Timestamp) -> Result<bool> {
        let key = key.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let add = sqlx::query(
                        "INSERT INTO signing_keys
                         (generation, created_at, signs_from, sealed, kid, public_key, private_key)
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
                    )
                    .bind(key.generation)
                    .bind(key.created_at.0)
                    .bind(key.signs_from.0)
                    .bind(key.sealed)
                    .bind(key.kid)
                    .bind(key.public_key)
                    .bind(key.private_key);
                    if change(connection, add).await? == 0 {
                        return Ok(false);
                    }
                    let end = sqlx::query(
                        "UPDATE signing_keys SET verifies_until = min(coalesce(verifies_until, $2), $2)
                     WHERE generation < $1",
                    );
                    change(connection, end.bind(key.generation).bind(older_until.0)).await?;
                    Ok(true)
                })
            })
            .await
    }

    async fn delete_signing_keys(&self, before: Timestamp, limit_rows: u32) -> Result<u64> {
        let query = sqlx::query(
            "DELETE FROM signing_keys WHERE generation IN
                 (SELECT generation FROM signing_keys WHERE verifies_until < $1 ORDER BY generation LIMIT $2)",
        );
        self.change_many(query.bind(before.0).bind(limit_rows)).await
    }

    async fn shared_secret(&self, name: &str, proposed: &SharedSecret) -> Result<SharedSecret> {
        let query = sqlx::query(
            "INSERT INTO shared_secrets (name, sealed, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        );
        let query = query.bind(name.to_owned()).bind(proposed.sealed).bind(proposed.value.clone());
        self.change_many(query).await?;
        let query = sqlx::query("SELECT sealed, value FROM shared_secrets WHERE name = $1");
        let rows = self.read(query.bind(name.to_owned())).await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("a shared secret was deleted".to_owned()))?;
        Ok(decode::<SecretColumns>(row)?.into())
    }
}
