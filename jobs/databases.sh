#!/bin/sh
# Run once, by the PostgreSQL image, in an empty volume: two databases, each with an owner that sees nothing else.
# (Optuna and MLflow cannot share one: both keep their version in a table alembic_version.)
set -eu
make() {
  psql -v ON_ERROR_STOP=1 -v name="$1" -v secret="$2" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'secret';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}
make optuna "$OPTUNA_PASSWORD"
make mlflow "$MLFLOW_DATABASE_PASSWORD"
