# Prints what of ours is on this host: left.sh INTERFACE FOLDER
for file in "/sys/class/net/$1" "$2/$1.conf" "$2/$1.key" "$2/$1.key.new" "/run/$1.applied" "/run/$1.log"; do
    [ ! -e "$file" ] || echo "$file"
done
[ ! -e "/var/lib/nexa-$1.packages" ] || sed "s/^/packages /" "/var/lib/nexa-$1.packages"
