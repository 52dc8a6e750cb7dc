package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// One header block of a story, which is the sequence of a connection's blocks. See proxy/codec/src/hpack/stories.rs.
type block struct {
	Story int `json:"story"`
	// Table sizes that are set before the block, in order.
	Sizes  []uint32 `json:"sizes"`
	Block  string   `json:"block"`
	Fields [][3]any `json:"fields"`
}

var names = strings.Fields(`accept accept-charset age allow authorization content-disposition content-range cookie expires host if-match
	link max-forwards proxy-authorization range retry-after set-cookie strict-transport-security www-authenticate
	tracestate x-b3-spanid x-request-id grpc-message grpc-encoding`)

// Converts the octets of a value to JSON characters, one for each octet.
func characters(octets string) string {
	var text strings.Builder
	for _, octet := range []byte(octets) {
		text.WriteRune(rune(octet))
	}
	return text.String()
}

func octets(characters string) string {
	var octets []byte
	for _, character := range characters {
		octets = append(octets, byte(character))
	}
	return string(octets)
}

func randomText(random *rand.Rand, longest float64, low, high byte) string {
	text := make([]byte, int(math.Pow(longest, random.Float64())))
	for at := range text {
		text[at] = low + byte(random.Intn(int(high-low)))
	}
	return string(text)
}

func randomFields(random *rand.Rand, values *[]string) []hpack.HeaderField {
	field := func(name, value string) hpack.HeaderField { return hpack.HeaderField{Name: name, Value: value} }
	fields := []hpack.HeaderField{field(":status", fmt.Sprint(200+random.Intn(10)*random.Intn(40)))}
	if random.Intn(2) == 0 {
		fields = []hpack.HeaderField{
			field(":method", []string{"GET", "POST", "OPTIONS", "QUERY"}[random.Intn(4)]),
			field(":scheme", []string{"http", "https"}[random.Intn(2)]),
			field(":authority", fmt.Sprintf("service-%d.shop:80", random.Intn(20))),
			field(":path", "/"+randomText(random, 80, 'a', 'z')),
		}
	}
	for range random.Intn(25) {
		if len(*values) == 0 || random.Intn(3) == 0 {
			longest, high := 60., byte(127)
			if random.Intn(40) == 0 {
				longest = 8000
			}
			if random.Intn(5) == 0 {
				high = 255
			}
			text := strings.ReplaceAll(randomText(random, longest, 33, high), "\x7f", "-")
			*values = append(*values, text)
		}
		near := min(int(random.ExpFloat64()*8), len(*values)-1)
		name := names[random.Intn(len(names))]
		if random.Intn(2) == 0 {
			name = fmt.Sprintf("x-field-%d", random.Intn(60))
		}
		field := field(name, (*values)[len(*values)-1-near])
		if random.Intn(10) == 0 {
			// A new value: one that was in the table before would be encoded as an index.
			field.Sensitive, field.Value = true, fmt.Sprintf("secret %d", random.Int63())
		}
		fields = append(fields, field)
	}
	return fields
}

func hpackEncode(seed int64, stories, blocks int, out io.Writer) error {
	random := rand.New(rand.NewSource(seed))
	lines := json.NewEncoder(out)
	for story := range stories {
		var octets bytes.Buffer
		var values []string
		encoder := hpack.NewEncoder(&octets)
		for range blocks {
			line := block{Story: story, Sizes: []uint32{}}
			if random.Intn(20) == 0 {
				for range 1 + random.Intn(3) {
					line.Sizes = append(line.Sizes, []uint32{0, 32, 77, 300, 2048, 4096}[random.Intn(6)])
				}
			}
			for _, size := range line.Sizes {
				encoder.SetMaxDynamicTableSize(size)
			}
			octets.Reset()
			for _, field := range randomFields(random, &values) {
				if err := encoder.WriteField(field); err != nil {
					return err
				}
				line.Fields = append(line.Fields, [3]any{field.Name, characters(field.Value), field.Sensitive})
			}
			line.Block = hex.EncodeToString(octets.Bytes())
			if err := lines.Encode(line); err != nil {
				return err
			}
		}
	}
	return nil
}

func hpackDecode(in io.Reader, out io.Writer) error {
	var decoder *hpack.Decoder
	story, count := -1, 0
	lines := json.NewDecoder(bufio.NewReader(in))
	for ; ; count++ {
		var line block
		if err := lines.Decode(&line); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if line.Story != story {
			decoder, story = hpack.NewDecoder(4096, nil), line.Story
		}
		for _, size := range line.Sizes {
			decoder.SetAllowedMaxDynamicTableSize(size)
		}
		coded, err := hex.DecodeString(line.Block)
		if err != nil {
			return err
		}
		fields, err := decoder.DecodeFull(coded)
		if err != nil {
			return fmt.Errorf("line %d: %w", count, err)
		}
		if len(fields) != len(line.Fields) {
			return fmt.Errorf("line %d: %d fields, and not %d", count, len(fields), len(line.Fields))
		}
		for at, field := range fields {
			wanted := line.Fields[at]
			never, _ := wanted[2].(bool)
			if field.Name != wanted[0] || field.Value != octets(wanted[1].(string)) || (never && !field.Sensitive) {
				return fmt.Errorf("line %d: %v, and not %v", count, field, wanted)
			}
		}
	}
	_, err := fmt.Fprintln(out, count)
	return err
}
