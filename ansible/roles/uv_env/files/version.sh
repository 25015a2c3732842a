# Prints the version (3.12) of the Python that the environment is made with: version.sh PYTHON
python=$1
command -v "$python" >/dev/null ||
    { echo "$python is not on this node: name another Python in nexa_python" >&2; exit 1; }
exec "$python" -I -c 'import sys; v = "%d.%d" % sys.version_info[:2]
if sys.version_info < (3, 11): sys.exit("Python %s is too old: the lock needs 3.11 or newer" % v)
print(v, end="")'
