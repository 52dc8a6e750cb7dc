// Go's crypto/x509 as a judge of certificates: verifies a chain, and prints what it found in the leaf as JSON.
//
//	x509 ROOTS CHAIN server|client UNIX-TIME      both files PEM; the chain begins with the leaf
package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strconv"
	"time"
)

// The extension of alternative names. Source: RFC 5280, 4.2.1.6.
const alternativeNames = "2.5.29.17"

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(rootsFile, chainFile, role, at string) error {
	roots, err := read(rootsFile)
	if err != nil {
		return err
	}
	chain, err := read(chainFile)
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return err
	}
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: time.Unix(seconds, 0),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if role == "client" {
		options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for _, root := range roots {
		options.Roots.AddCert(root)
	}
	for _, issuer := range chain[1:] {
		options.Intermediates.AddCert(issuer)
	}
	leaf := chain[0]
	if _, err := leaf.Verify(options); err != nil {
		return err
	}
	isCritical := false
	for _, extension := range leaf.Extensions {
		isCritical = isCritical || extension.Id.String() == alternativeNames && extension.Critical
	}
	uris := []string{}
	for _, uri := range leaf.URIs {
		uris = append(uris, uri.String())
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"uris": uris, "otherNames": len(leaf.DNSNames) + len(leaf.EmailAddresses) + len(leaf.IPAddresses),
		"namesAreCritical": isCritical, "subject": leaf.Subject.String(), "isAuthority": leaf.IsCA,
		"signsOnly": leaf.KeyUsage == x509.KeyUsageDigitalSignature, "usages": len(leaf.ExtKeyUsage) + len(leaf.UnknownExtKeyUsage),
		"endsWithin": within(leaf, chain[1:], roots), "unhandled": len(leaf.UnhandledCriticalExtensions),
	})
}

// Whether the leaf ends before or with each certificate above it.
func within(leaf *x509.Certificate, above ...[]*x509.Certificate) bool {
	for _, certificates := range above {
		for _, certificate := range certificates {
			if leaf.NotAfter.After(certificate.NotAfter) {
				return false
			}
		}
	}
	return true
}

func read(file string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var certificates []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certificates = append(certificates, certificate)
	}
	if len(certificates) == 0 {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	return certificates, nil
}
