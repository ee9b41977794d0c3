package main

import (
	"regexp"
	"strings"
)

// The output of check is passed on and kept in logs, so secrets on the command line of a
// QEMU are left out of it.

// notShown stands in the place of a secret. A QEMU would not accept it, and it stands out in
// a command line, where it is quoted.
const notShown = "<not shown>"

var (
	// secretKey is a key whose value is a secret, also one of a deeper object, as in
	// file.password. A key in front of password-secret has the name of an object.
	secretKey = regexp.MustCompile(`^(?:.*\.)?(?:password|passwd|cookie)$`)
	// secretJSON is the same in JSON, of which QEMU takes either quotes.
	secretJSON = regexp.MustCompile(`(["'](?:[^"']*\.)?(?:password|passwd|cookie)["']\s*:\s*)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')`)
	dataJSON   = regexp.MustCompile(`(["']data["']\s*:\s*)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')`)
	ofSecret   = regexp.MustCompile(`["']qom-type["']\s*:\s*["']secret["']`)
	// userInfo is the password in an address, as in ssh://user:password@host; iSCSI has
	// a % before it.
	userInfo = regexp.MustCompile(`([A-Za-z0-9+]://[^/@:%,]*[:%])([^/@]+)(@)`)
	// cephKey is the key of a user in rbd:pool/image:id=user:key=...
	cephKey = regexp.MustCompile(`(rbd:.*?:key=)((?:[^:\\]|\\.)*)`)
	// credential begins a credential of systemd that is given to a guest:
	// io.systemd.credential:name=... of -smbios, and io.systemd.credential.binary:
	credential = regexp.MustCompile(`^(value=io\.systemd\.credential(?:\.binary)?:[^=]*=)(.+)$`)
	// password is the flag of -vnc, which says that a client has to give one.
	password = regexp.MustCompile(`(?:^|,)password(?:=(?:on|yes|true|y))?(?:,|$)`)
	isFlag   = regexp.MustCompile(`^(?:on|off|yes|no|true|false|y|n)$`)
)

// withoutSecrets returns the value of an option with notShown in the place of each secret, and
// whether there was one.
func withoutSecrets(option, value string) (_ string, found bool) {
	replace := func(re *regexp.Regexp, s, with string) string {
		if !re.MatchString(s) {
			return s
		}
		found = true
		return re.ReplaceAllString(s, with)
	}
	if option == "append" { // the words of the guest's kernel
		return value, false
	}
	if strings.ContainsAny(value, "{") {
		value = replace(secretJSON, value, `${1}"`+notShown+`"`)
		if ofSecret.MatchString(value) {
			value = replace(dataJSON, value, `${1}"`+notShown+`"`)
		}
	}
	value = replace(userInfo, value, "${1}"+notShown+"${3}")
	if strings.HasPrefix(value, "{") {
		return value, found
	}
	parts := optionParts(value)
	isSecret := option == "set" || option == "object" && (parts[0] == "secret" || strings.Contains(","+value+",", ",qom-type=secret,"))
	ofFirmware := option == "fw_cfg" && strings.Contains(value, "opt/io.systemd.credentials/")
	for i, p := range parts {
		key, v, pair := strings.Cut(p, "=")
		switch {
		case !pair:
		case option == "vnc" && key == "password" && isFlag.MatchString(v):
		case secretKey.MatchString(key),
			isSecret && (key == "data" || strings.HasSuffix(key, ".data")),
			ofFirmware && key == "string":
			p, found = key+"="+notShown, true
		default:
			p = replace(credential, p, "${1}"+notShown)
			p = replace(cephKey, p, "${1}"+notShown)
		}
		parts[i] = p
	}
	return strings.Join(parts, ","), found
}
