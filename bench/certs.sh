#!/usr/bin/env bash
# usage: bench/certs.sh DIR
# Creates a CA (ca.pem) and two certificates of it (a.pem, b.pem) with their keys (a.key, b.key) in DIR, unless they exist.
# Each is that of localhost, and of the ServiceAccount of its name.
set -euo pipefail
mkdir -p "$1"
cd "$1"
[[ ! -f a.pem || ! -f b.pem ]] || exit 0

key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"; }

key ca.key
openssl req -x509 -new -key ca.key -days 365 -subj "/CN=bench" -out ca.pem \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
for name in a b; do
  key $name.key
  openssl req -new -key $name.key -subj "/O=bench" -out $name.csr
  openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -out $name.new -extfile <(
    printf '%s\n' "subjectAltName=critical,URI:spiffe://bench.local/ns/default/sa/$name,DNS:localhost" \
      "keyUsage=critical,digitalSignature" "extendedKeyUsage=serverAuth,clientAuth" "basicConstraints=CA:FALSE"
  )
  mv $name.new $name.pem
done
