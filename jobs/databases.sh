#!/bin/sh
# The PostgreSQL image runs this script once, when the volume is empty. It makes two databases, each with an owner that
# has no access to the other. Optuna and MLflow cannot share a database, because both have a table alembic_version.
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
