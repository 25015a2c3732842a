# Makes the folders that are missing, and prints them: folders.sh make|look FOLDER…
act=$1
shift
for folder do
    [ ! -e "$folder" ] || { [ -d "$folder" ] && [ -w "$folder" ] && [ -x "$folder" ]; } ||
        { echo "$folder is not a folder that $(id -un) can write to" >&2; exit 1; }
done
umask 077
for folder do
    [ ! -e "$folder" ] || continue
    echo "$folder"
    [ "$act" = look ] || mkdir -p "$folder" || exit
done
