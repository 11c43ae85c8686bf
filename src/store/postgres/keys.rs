//! Keys that sign tokens.

use async_trait::async_trait;

use super::{PostgresStore, column, decode, limit};
use crate::domain::time::Timestamp;
use crate::store::codec::{SecretColumns, SigningKeyColumns};
use crate::store::{Error, KeyStore, Result, SharedSecret, SigningKeyRow};

#[async_trait]
impl KeyStore for PostgresStore {
    async fn signing_keys(&self, limit_rows: u32) -> Result<Vec<SigningKeyRow>> {
        let query = sqlx::query(
            "SELECT generation, created_at, signs_from, verifies_until, sealed, kid, public_key, private_key
             FROM signing_keys ORDER BY generation DESC LIMIT $1",
        );
        let rows = self.read(query.bind(limit(limit_rows))).await?;
        rows.iter().map(|row| Ok(decode::<SigningKeyColumns>(row)?.into())).collect()
    }

    async fn add_signing_key(&self, key: &SigningKeyRow, older_until: Timestamp) -> Result<bool> {
        let query = sqlx::query(
            "WITH added AS (
                 INSERT INTO signing_keys (generation, created_at, signs_from, sealed, kid, public_key, private_key)
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING generation
             ), older AS (
                 UPDATE signing_keys SET verifies_until = LEAST(verifies_until, $8)
                 WHERE generation < (SELECT generation FROM added)
             )
             SELECT count(*) FROM added",
        )
        .bind(key.generation)
        .bind(key.created_at.0)
        .bind(key.signs_from.0)
        .bind(key.sealed)
        .bind(&key.kid)
        .bind(&key.public_key)
        .bind(&key.private_key)
        .bind(older_until.0);
        let rows = self.write(query).await?;
        Ok(rows.first().map(|row| column::<i64>(row, 0)).transpose()? == Some(1))
    }

    async fn delete_signing_keys(&self, before: Timestamp, limit_rows: u32) -> Result<u64> {
        let query = sqlx::query(
            "DELETE FROM signing_keys WHERE generation IN
                 (SELECT generation FROM signing_keys WHERE verifies_until < $1 ORDER BY generation LIMIT $2)",
        );
        self.change(query.bind(before.0).bind(limit(limit_rows))).await
    }

    async fn shared_secret(&self, name: &str, proposed: &SharedSecret) -> Result<SharedSecret> {
        let query = sqlx::query(
            "INSERT INTO shared_secrets (name, sealed, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        );
        self.change(query.bind(name).bind(proposed.sealed).bind(&proposed.value)).await?;
        let query = sqlx::query("SELECT sealed, value FROM shared_secrets WHERE name = $1");
        let rows = self.read(query.bind(name)).await?;
        let row = rows.first().ok_or_else(|| Error::Unavailable("a shared secret was deleted".to_owned()))?;
        Ok(decode::<SecretColumns>(row)?.into())
    }
}
