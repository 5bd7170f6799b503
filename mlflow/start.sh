#!/bin/sh
# Start the tracking server: mlflow/start.sh FOLDER [PORT]
# FOLDER keeps the database and the artifacts, unless MLFLOW_BACKEND_STORE_URI and MLFLOW_ARTIFACTS_DESTINATION name other
# places; <home>/mlflow is where runs without a server keep theirs. Listens on this machine only, unless MLFLOW_HOST says
# otherwise. Then, wherever runs are started: export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
set -eu
folder=${1:?"Usage: mlflow/start.sh FOLDER [PORT]"}
port=${2:-5000}
while IFS='=' read -r name value; do
    case $name in '' | '#'*) continue ;; esac
    eval "export $name=\"\${$name:-$value}\""
done < "${MLFLOW_ENV:-$(dirname "$0")/server.env}"
mkdir -p "$folder/artifacts"
# In the environment, not among the arguments: there everybody on the machine could read a database's password.
export MLFLOW_BACKEND_STORE_URI="${MLFLOW_BACKEND_STORE_URI:-sqlite:///$folder/mlflow.db}"
export MLFLOW_ARTIFACTS_DESTINATION="${MLFLOW_ARTIFACTS_DESTINATION:-$folder/artifacts}"
# `exec`, so that a signal reaches the server itself.
exec mlflow server \
    --host "${MLFLOW_HOST:-127.0.0.1}" --port "$port" --workers "$MLFLOW_WORKERS" \
    --allowed-hosts "$MLFLOW_SERVER_ALLOWED_HOSTS"
