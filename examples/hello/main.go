// Hello greets from whatever architecture it was built for.
package main

import (
	"fmt"
	"runtime"
)

func main() {
	fmt.Println("Hello, " + runtime.GOARCH + "!")
}
