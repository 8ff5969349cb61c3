# Completion of atomic-rs for bash 4.4 or newer.
_atomic_rs() {
    # Bash takes words apart at colons and equals signs; image names and options have both.
    local words=() word joins= i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == [:=]* && ${#words[@]} -gt 1 ]]; then
            words[-1]+=$word joins=yes
        elif [[ $joins ]]; then
            words[-1]+=$word joins=
        else
            words+=("$word")
        fi
    done
    local IFS=$'\n' current=${words[-1]} index=$((${#words[@]} - 1))
    COMPREPLY=($(ATOMIC_RS_COMPLETE=bash _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$index "$1" -- "${words[@]}" 2>/dev/null))
    local breaks=${current//[^:=]/}
    if [[ $breaks && $COMP_WORDBREAKS == *"${breaks: -1}"* ]]; then
        # Only what follows the last of them is to be replaced.
        COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*[:=]}"}"}")
    fi
    [[ ${COMPREPLY-} == *[=/] ]] || compopt +o nospace 2>/dev/null
}
complete -o nospace -o bashdefault -o nosort -F _atomic_rs atomic-rs
