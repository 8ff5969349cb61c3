#!/bin/sh
# What scripts written for udocker rely on: commands, options, output, exit codes.
# usage: udocker.sh REGISTRY DIRECTORY
# REGISTRY (host:port, plain HTTP) has the images app:1 and multi:1; DIRECTORY is empty and ours.
registry=$1
work=$2
cd "$work" || exit 1
export UDOCKER_DIR=$work/home
export UDOCKER_REGISTRY=http://$registry
number=0
failures=0

# ok DESCRIPTION COMMAND...: it succeeds
ok() {
	description=$1
	shift
	if "$@" >out 2>err; then pass; else fail "exit code $?"; fi
}

# code NUMBER DESCRIPTION COMMAND...: it ends with this code
code() {
	wanted=$1 description=$2
	shift 2
	"$@" >out 2>err
	found=$?
	if [ $found = "$wanted" ]; then pass; else fail "exit code $found, not $wanted"; fi
}

# says TEXT: what the last command printed has this in it, on stdout
says() {
	description="$description: says \"$1\""
	if grep -qF -- "$1" out; then pass; else fail "not said"; fi
}

# complains TEXT: the same on stderr
complains() {
	description="$description: complains \"$1\""
	if grep -qF -- "$1" err; then pass; else fail "not said"; fi
}

# is TEXT: what the last command printed is this and nothing else
is() {
	description="$description: is \"$1\""
	if [ "$(cat out)" = "$1" ]; then pass; else fail "something else"; fi
}

pass() {
	number=$((number + 1))
	echo "ok $number - $description"
}

fail() {
	number=$((number + 1))
	failures=$((failures + 1))
	echo "not ok $number - $description: $1"
	sed 's/^/# out: /' out
	sed 's/^/# err: /' err
}

# Help, version, settings.
ok "without words" udocker
says "Usage:"
ok "help" udocker help
ok "--help" udocker --help
ok "help of a command" udocker run --help
says "--volume"
ok "version" udocker version
says "version:"
ok "-V" udocker -V
ok "showconf" udocker showconf
says "verbose_level = 3"
ok "install" udocker install
says "Info: udocker command line interface"
code 1 "a command that is none" udocker frobnicate
complains "Error: invalid command: frobnicate"
code 1 "an option that is none" udocker ps --frobnicate
complains "Error: syntax error at: --frobnicate"

# The directory.
ok "mkrepo" udocker mkrepo "$work/other"
code 1 "mkrepo of one that is there" udocker mkrepo "$work/other"
complains "Error: localrepo directory already exists: $work/other"
code 1 "--repo of none" udocker --repo="$work/nothing" images
complains "Error: invalid udocker repository: $work/nothing"
ok "--repo" udocker --repo="$work/other" images
ok "images of none" udocker images
says "Info: creating repo: $UDOCKER_DIR"
says "REPOSITORY"

# Images.
ok "pull" udocker pull app:1
says "Info: downloading layer sha256:"
code 1 "pull of what is not there" udocker pull missing:1
complains "Error: no files downloaded"
code 1 "pull of what is no name" udocker pull 'UPPER CASE'
ok "pull from a registry that is named" udocker pull --registry="http://$registry" multi:1
ok "pull with the registry in the name" udocker --insecure pull "$registry/app:1"
ok "images" udocker images
says "app:1    ."
says "$registry/app:1"
ok "images -l" udocker images -l
says "MB)"
ok "images -p" udocker images -p
says "linux/amd64"
ok "images -q" udocker -q images
if grep -q REPOSITORY out; then fail "a heading"; else pass; fi
ok "tag" udocker tag app:1 mine:2
code 1 "tag of what is there" udocker tag app:1 mine:2
complains "target already exists"
code 1 "tag of what is not there" udocker tag nothing:1 mine:3
complains "source does not exist"
code 1 "tag to what is no name" udocker tag app:1 'A B'
complains "target name is invalid"
ok "inspect of an image" udocker inspect app:1
says '    "architecture": "amd64"'
code 1 "inspect of nothing" udocker inspect nothing
complains "Error: image not found nothing"
ok "manifest inspect" udocker manifest inspect app:1
says '"schemaVersion": 2'
ok "manifest of an index" udocker manifest inspect multi:1
says '"manifests"'
ok "verify" udocker verify app:1
says "Info: image Ok"
says "Info: layer ok: sha256:"
code 1 "verify of nothing" udocker verify nothing:1
complains "Error: selecting image and tag"
ok "protect of an image" udocker protect mine:2
code 1 "rmi of what is protected" udocker rmi mine:2
complains "image repository is protected"
ok "images shows protection" udocker images
says "mine:2    P"
ok "unprotect of an image" udocker unprotect mine:2
ok "rmi" udocker rmi mine:2
says "Info: deleting image: mine:2"
code 1 "rmi of what is gone" udocker rmi mine:2
complains "Error: deleting image"
code 1 "protect of nothing" udocker protect nothing:1
complains "protect image failed"

# Archives of images.
ok "save" udocker save -o app.tar app:1
code 1 "save over a file" udocker save -o app.tar app:1
complains "Error: output file already exists: app.tar"
code 1 "save of nothing" udocker save -o no.tar nothing:1
complains "Error: save image failed"
code 1 "load of what is there" udocker load -i app.tar
complains "Error: load failed"
ok "load under a name" udocker load -i app.tar loaded:1
says "loaded:1"
says "Info: adding layer:"
udocker save app:1 >stream.tar
ok "save to stdout is the same archive" cmp app.tar stream.tar
ok "rmi of it" udocker rmi loaded:1
ok "load of stdin" sh -c 'udocker load - loaded:1 <app.tar'
says "loaded:1"
ok "save of several" udocker save -o two.tar app:1 loaded:1
ok "skopeo reads it" skopeo inspect docker-archive:two.tar:app:1
code 1 "load of no archive" udocker load -i out

# Containers.
ok "create" udocker create --name=one app:1
id=$(cat out)
is "$id"
[ ${#id} = 36 ] || fail "no id"
code 1 "create of a name that is there" udocker create --name=one app:1
complains "Error: container name already exists"
code 1 "create of a name that is none" udocker create --name='a b' app:1
complains "invalid container name or wrong format"
code 1 "create of an image that is not there" udocker create nothing:1
complains "getting layers or json"
ok "create --force" udocker create --force --name=one app:1
ok "the name has moved" sh -c '[ "$(udocker inspect -p one)" != "$UDOCKER_DIR/containers/'"$id"'/ROOT" ]'
ok "inspect -p" udocker inspect -p "$id"
is "$UDOCKER_DIR/containers/$id/ROOT"
ok "rm by id" udocker rm "$id"
says "Info: deleting container: $id"
ok "ps" udocker ps
says "CONTAINER ID"
says "['one']"
says "app:1"
ok "ps -m -s -p" udocker ps -m -s -p
says "MOD"
says "linux/amd64"
ok "name" udocker name one uno
code 1 "name of nothing" udocker name nothing x
complains "invalid container id or name"
ok "ps shows both names" udocker ps
says "['one', 'uno']"
ok "rmname" udocker rmname uno
says "Info: container name: uno removed."
code 1 "rmname of nothing" udocker rmname uno
complains "removing container name"
ok "rename" udocker rename one first
code 1 "rename of nothing" udocker rename one first
complains "container does not exist"
ok "rename back" udocker rename first one
ok "protect" udocker protect one
code 1 "rm of what is protected" udocker rm one
complains "Error: container is protected"
ok "ps shows protection" sh -c 'udocker ps | grep -q " P W"'
code 1 "setup of what is protected" udocker setup --execmode=R1 one
complains "container is protected"
ok "unprotect" udocker unprotect one
code 1 "rm of nothing" udocker rm nothing
complains "Error: invalid container id"
code 1 "rm without words" udocker rm

# Run.
run="udocker run --nobanner"
ok "run" $run one echo hello
is "hello"
ok "the image's command" $run one
is "of the image"
ok "the banner" udocker run one true
says "STARTING"
ok "no banner with -q" udocker -q run one echo x
is "x"
code 7 "the exit code" $run one sh -c 'exit 7'
code 2 "a command that is none" $run one no-such-command
complains "command not found or has no execute bit set"
code 2 "a container that is none" udocker run --pull=never nothing true
complains "container id or name not found"
code 2 "nor an image" udocker run nothing true
complains "image or container not available"
ok "-e" $run -e A=1 --env=B=2 one sh -c 'echo $A $B'
is "1 2"
ok "-e of the host's" env C=host $run -e C one sh -c 'echo $C'
is "host"
echo 'IMAGE=file' >env
ok "--env-file wins over the image" $run --env-file=env one sh -c 'echo $IMAGE'
is "file"
ok "--hostenv" env HOSTS=value $run --hostenv one sh -c 'echo $HOSTS'
is "value"
ok "USER" $run one sh -c 'echo $USER $container_names'
is "root one"
ok "--nometa" $run --nometa one sh -c 'echo $IMAGE'
is ""
ok "-w" $run -w /tmp one pwd
is "/tmp"
code 2 "-w of nothing" $run -w /nothing one pwd
mkdir -p data && echo content >data/file
ok "-v" $run -v "$work/data:/data" one cat /data/file
is "content"
ok "-v of one path" $run -v "$work/data" one cat "$work/data/file"
is "content"
ok "-v HOST:" $run -v "$work/data:" one cat "$work/data/file"
ok "-v of a file" $run -v "$work/data/file:/etc/some" one cat /etc/some
is "content"
code 1 "-v :ro" $run -v "$work/data:/data:ro" one sh -c 'echo x > /data/file'
code 2 "-v of nothing" $run -v /no/such/path one true
complains "invalid host volume path: /no/such/path"
ok "--novol" $run -v "$work/data:/data" --novol=/data one sh -c 'test ! -e /data/file'
ok "--user" $run --user=1234:55 one sh -c 'echo $(id -u) $(id -g)'
is "1234 55"
ok "passwd stays whole" $run --user=1234:55 one sh -c 'grep -c : /etc/passwd'
is "2"
ok "--entrypoint" $run --entrypoint=echo one by entrypoint
is "by entrypoint"
ok "--hostauth" $run --hostauth one sh -c 'cmp /etc/passwd /etc/passwd && grep -q root /etc/passwd'
ok "--bindhome" env HOME="$work" $run --bindhome one cat "$work/data/file"
is "content"
ok "--cpuset-cpus" $run --cpuset-cpus=0 one nproc
is "1"
ok "-i -t are accepted" $run -i -t -a one true
ok "stdin" sh -c 'echo through | udocker run --nobanner one cat'
is "through"
ok "a lot of output" sh -c 'udocker run --nobanner one head -c 3000000 /dev/zero | wc -c'
is "3000000"
ok "run of an image" $run --name=new app:1 true
ok "it is there afterwards" udocker rm new
code 1 "--rm also where the command fails" $run --rm --name=gone app:1 false
code 1 "it is gone" udocker rm gone
ok "--pull=reuse" $run --pull=reuse --name=one app:1 echo again
is "again"
code 1 "a name that is there" $run --name=one app:1 true
complains "invalid container name"

# Files.
ok "what is written stays" $run one sh -c 'echo kept > /kept; cat /kept'
ok "clone" udocker clone --name=two one
ok "it has what was written" $run two cat /kept
is "kept"
ok "export" udocker export -o tree.tar one
says "Info: exporting to file tree.tar"
ok "it has what was written" tar -tf tree.tar ./kept
ok "import" udocker import tree.tar plain:1
code 1 "import of what is there" udocker import tree.tar plain:1
says "Info: tag already exists in repo: 1"
ok "it runs" $run plain:1 cat /kept
is "kept"
ok "import of stdin" sh -c 'gzip -c tree.tar | udocker import - packed:1'
ok "import --tocontainer" udocker import --tocontainer --name=direct tree.tar app:1
ok "the image of that name is left alone" udocker verify app:1
ok "it runs" $run direct cat /kept
is "kept"
ok "export --clone" udocker export --clone -o whole.tar one
ok "it has what is on record" tar -tf whole.tar container.json imagerepo.name ROOT/kept
ok "import --clone" udocker import --clone --tocontainer --name=whole whole.tar
ok "it runs" $run whole cat /kept
is "kept"
ok "it has the image's command" $run whole
is "of the image"
code 1 "import --clone of what is no container" udocker import --clone tree.tar
complains "Error: importing"
mkdir bare && tar -C bare -xf tree.tar
ok "--location" $run --location="$work/bare" any sh -c 'cat /kept; echo new > /lent'
is "kept"
ok "its files stay" test -f bare/lent
ok "and no container of it" sh -c 'udocker -q ps | wc -l; udocker -q ps -m -s >/dev/null'
code 2 "--location of nothing" $run --location="$work/nothing" any true
complains "invalid --location"
code 2 "--location in a mode that changes files" $run --execmode=F1 --location="$work/bare" any true
complains "mode F1 changes files"
chmod -R u+rwX bare
code 1 "import of nothing" udocker import nothing.tar x:1
complains "tar file does not exist"

# Modes.
ok "setup" udocker setup one
says "execmode: N"
ok "setup --execmode" udocker setup --execmode=R1 one
ok "it runs so" $run one cat /kept
is "kept"
ok "P2" udocker setup --execmode=P2 one
ok "it runs so" $run one sh -c 'echo $(cat /kept) $(id -u)'
is "kept 0"
ok "and back" udocker setup --execmode=N one
ok "it runs so" $run one cat /kept
is "kept"
code 1 "a mode that is none" udocker setup --execmode=X9 one
complains "invalid execmode: X9"
ok "a default" env UDOCKER_DEFAULT_EXECUTION_MODE=P2 udocker create --name=three app:1
ok "it is that" udocker setup three
says "execmode: P2"

# The host's NVIDIA driver, of which the loader is told.
ok "a container for it" udocker create --name=gpu app:1
code 1 "setup --nvidia where there is none" udocker setup --nvidia gpu
complains "host nvidia libraries not found"
mkdir driver && echo driver > driver/libcuda.so.1.2 && ln -s libcuda.so.1.2 driver/libcuda.so.1
ok "setup --nvidia" env LD_LIBRARY_PATH="$work/driver" udocker setup --nvidia gpu
ok "it is known" udocker setup gpu
says "nvidiamode: True"
for mode in N R1 P2; do
    ok "in $mode" udocker setup --execmode=$mode gpu
    ok "it is seen" env LD_LIBRARY_PATH="$work/driver" $run gpu cat /usr/lib/libcuda.so.1 /usr/lib/libcuda.so.1.2
    is "driver
driver"
done
code 2 "a driver that is gone" $run gpu true
complains "host nvidia libraries not found"
ok "away" udocker rm gpu

# Settings.
cat > udocker.conf <<'END'
# Without the head that later versions want.
default_execution_mode = "R1"
cmd = ["echo", "of the settings"]
unknown_key = 7
http_insecure = True
END
ok "--config" udocker --config=udocker.conf showconf
says "default_execution_mode = R1"
says "http_insecure = true"
says "unknown_key = 7"
ok "its mode" udocker --config=udocker.conf create --name=four app:1
ok "it is that" udocker setup four
says "execmode: R1"
udocker rm four >/dev/null
ok "its command" udocker --config=udocker.conf -q run --nobanner --nometa --execmode=N --rm app:1
is "of the settings"
code 1 "--config of nothing" udocker --config=nothing.conf showconf
complains "cannot read the configuration nothing.conf"
mv udocker.conf "$UDOCKER_DIR/udocker.conf"
ok "the file of the directory" udocker showconf
says "default_execution_mode = R1"
ok "the environment wins" env UDOCKER_DEFAULT_EXECUTION_MODE=P2 udocker showconf
says "default_execution_mode = P2"
rm "$UDOCKER_DIR/udocker.conf"

# Registries.
ok "search" udocker search app
says "app"
ok "search --list-tags" udocker search --list-tags app
is "1"
code 1 "login without a password" sh -c 'udocker login --username=x </dev/null'
complains "Error: invalid credentials"
code 1 "logout of nowhere" udocker logout --registry=nowhere.example
complains "Error: deleting credentials"

for container in one two three direct whole; do udocker rm $container >/dev/null; done
for left in $(udocker -q ps | cut -d' ' -f1); do udocker rm "$left" >/dev/null; done
ok "nothing is left" udocker -q ps
is ""

echo "1..$number"
[ $failures = 0 ]
