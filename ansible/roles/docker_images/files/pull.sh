# Pulls the images that are not here, and prints them: pull.sh pull|look IMAGE@DIGEST…
set -eu
act=$1
shift
for image do
    if docker image inspect "$image" >/dev/null 2>&1; then continue; fi
    if [ "$act" = look ]; then echo "$image"; else docker pull --quiet "$image"; fi
done
