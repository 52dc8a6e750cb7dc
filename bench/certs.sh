#!/usr/bin/env bash
# usage: bench/certs.sh DIR
# Creates a CA (ca.pem) and a server certificate for localhost (b.pem, b.key) in DIR, unless they exist.
set -euo pipefail
mkdir -p "$1"
cd "$1"
[[ ! -f b.pem ]] || exit 0

key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"; }

key ca.key
openssl req -x509 -new -key ca.key -days 365 -subj "/CN=bench" -out ca.pem \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
key b.key
openssl req -new -key b.key -subj "/O=bench" -out b.csr
openssl x509 -req -in b.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -out b.new -extfile <(
  printf '%s\n' "subjectAltName=critical,URI:spiffe://bench.local/ns/default/sa/b,DNS:localhost" \
    "keyUsage=critical,digitalSignature" "extendedKeyUsage=serverAuth,clientAuth" "basicConstraints=CA:FALSE"
)
mv b.new b.pem
