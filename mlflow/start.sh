#!/bin/sh
# Start the tracking server: mlflow/start.sh FOLDER [PORT]
# FOLDER keeps the database and the artifacts; the same as the runs' own store when it is <home>/mlflow.
# Then, wherever runs are started: export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
set -eu
folder=${1:?"Usage: mlflow/start.sh FOLDER [PORT]"}
port=${2:-5000}
while IFS='=' read -r name value; do
    case $name in '' | '#'*) continue ;; esac
    eval "export $name=\"\${$name:-$value}\""
done < "${MLFLOW_ENV:-$(dirname "$0")/server.env}"
mkdir -p "$folder/artifacts"
# `exec`, so that a signal reaches the server itself.
exec mlflow server \
    --host 127.0.0.1 --port "$port" --workers "$MLFLOW_WORKERS" --allowed-hosts "$MLFLOW_SERVER_ALLOWED_HOSTS" \
    --backend-store-uri "sqlite:///$folder/mlflow.db" --artifacts-destination "$folder/artifacts"
