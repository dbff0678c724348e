#!/usr/bin/env bash
# Brings the program that draws diagrams, from npm's package mermaid: website/tools.sh FILE. Needs npm.
set -euo pipefail
version=11.17.2
sum=581ed7d74bd9048d0e3a91363927d72ef22942d7722546b27f7cc29e35390eb8
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# The package alone, without what it is made of: the file has all of that in it.
npm pack --silent --pack-destination "$folder" "mermaid@$version" >/dev/null
tar --extract --gzip --file "$folder"/mermaid-*.tgz --directory "$folder" package/dist/mermaid.min.js
echo "$sum  $folder/package/dist/mermaid.min.js" | sha256sum --check --quiet
mkdir -p "$(dirname "$1")"
mv "$folder/package/dist/mermaid.min.js" "$1"
