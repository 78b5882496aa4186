//! Which sources of the project are paused.

use sea_orm::{DbBackend, DbErr};

use super::Store;
use super::row::get;
use crate::clock::Millis;

impl Store {
    pub(crate) async fn paused(&self) -> Result<Vec<i32>, DbErr> {
        let mut sql = self.sql("select source from t_task_retry_pause where project_name = ");
        sql.bind(self.project.as_str()).push(" order by source");
        self.query(sql.build()).await?.iter().map(|row| get(row, 0)).collect()
    }

    /// Pauses a source; one that is paused stays so.
    pub(crate) async fn pause(&self, source: i32, now: Millis) -> Result<(), DbErr> {
        let mut sql = self.sql(match self.backend() {
            DbBackend::MySql => "insert ignore into t_task_retry_pause ",
            _ => "insert into t_task_retry_pause ",
        });
        sql.push("(project_name, source, create_time) values (").bind(self.project.as_str());
        sql.push(", ").bind(source).push(", ").bind(self.own_times().down(now)).push(")");
        if self.backend() != DbBackend::MySql {
            sql.push(" on conflict do nothing");
        }
        self.execute(sql.build()).await.map(drop)
    }

    pub(crate) async fn resume(&self, source: i32) -> Result<(), DbErr> {
        let mut sql = self.sql("delete from t_task_retry_pause where project_name = ");
        sql.bind(self.project.as_str()).push(" and source = ").bind(source);
        self.execute(sql.build()).await.map(drop)
    }
}
